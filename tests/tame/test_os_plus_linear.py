"""The search on one linear layer with an outlier channel, whose best shift and threshold are known in closed form."""

import math

import pytest
import torch
import zoo
from torch import nn

from skerry.anatomy import resolve
from skerry.anatomy.dense import Dense
from skerry.anatomy.seams import NormWriter, Seam
from skerry.anatomy.sites import Site
from skerry.impact.scheme import Scheme
from skerry.tame.capture import View
from skerry.tame.consumers import Consumer
from skerry.tame.os_plus_choices import OsPlusChoices
from skerry.tame.seam_search import SeamSearch
from skerry.tame.threshold import Ranges


def layer_with_an_outlier(*, reach, num_bulk=255, num_out=512, num_tokens=512, offset=0.0):
    """Channels uniform in (-1, 1), the first in (offset - reach, offset + reach); weights uniform in (-1, 1), those of the first 1 in size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_tokens, num_bulk + 1, generator=generator) * 2 - 1
    # Both ends are reached, so that the range is the one that the formula has.
    x[0], x[1] = 1.0, -1.0
    x[:, 0] = x[:, 0] * reach + offset
    linear, norm = nn.Linear(num_bulk + 1, num_out), nn.LayerNorm(num_bulk + 1)
    with torch.no_grad():
        w = torch.rand(linear.weight.shape, generator=generator) * 2 - 1
        w[:, 0] = w[:, 0].sign()
        linear.weight.copy_(w)
    dense = Dense("up", linear, "weight", 0, Site(0, "mlp.in"), pieces={"w.up": torch.arange(num_out)})
    seam = Seam(
        "0.norm.mlp",
        "norm",
        0,
        Site(0, "mlp.in"),
        NormWriter(norm, 0.0),
        (dense,),
        torch.arange(num_bulk + 1),
        frozenset({"scale", "shift"}),
    )
    seen = View(0, torch.ones(num_tokens, dtype=torch.bool), {dense: x})
    low, high = x.double().aminmax(dim=0)
    return seam, Consumer(resolve(zoo.tiny("gpt2")), seam, [dense], loss="plain"), seen, Ranges(low, high)


def expected_loss(t, *, reach, num_bulk, act_levels, weight_levels):
    """Error per token and output: rounding is uniform noise of step^2 / 12, in x with step 2 t / levels, in W with step 2 (reach / t) / levels.

    The first column of W holds only its largest values, which lie half a step beyond the last level: error step^2 / 4.
    """
    act = (2 * t / act_levels) ** 2 / 12 * (num_bulk / 3 + (reach / t) ** 2)
    weight = (2 * reach / t / weight_levels) ** 2 / 12 * (num_bulk / 3 + 3 * t**2 / 3)
    return act + weight


@pytest.mark.parametrize(
    ("scheme", "levels", "weight_levels"),
    [("w8a8-tensor", 255, 255), ("w6a6-static", 63, 63), ("w8a6-static", 63, 255)],
)
def test_the_threshold_of_a_linear_layer_is_where_the_formula_has_it(scheme, levels, weight_levels):
    # d/dt of the expected loss is 0 at t^2 = reach * (levels of x) / (levels of W).
    reach, num_bulk = 64.0, 255
    seam, consumer, seen, ranges = layer_with_an_outlier(reach=reach)
    search = SeamSearch(
        seam,
        consumer,
        Scheme.parse(scheme),
        ranges,
        ranges,
        [seen],
        OsPlusChoices(floor=True, asymmetric=False, shift=False, steps=24),
    )
    best = search.run()[0]
    t = math.sqrt(reach * levels / weight_levels)
    lowest = expected_loss(t, reach=reach, num_bulk=num_bulk, act_levels=levels, weight_levels=weight_levels)
    assert best.loss / 512 == pytest.approx(lowest, rel=0.1)
    assert (
        abs(math.log(best.threshold / t)) < 0.35
    )  # the valley is flat: 3 % higher at a third of a natural logarithm
    nothing = next(c for c in search.tried if c.change.is_empty)
    at_reach = expected_loss(
        reach, reach=reach, num_bulk=num_bulk, act_levels=levels, weight_levels=weight_levels
    )
    assert nothing.loss / 512 == pytest.approx(at_reach, rel=0.15) or not nothing.complete


def test_the_shift_is_the_offset_and_makes_an_off_centre_channel_as_cheap_as_a_centred_one():
    scheme = Scheme.parse("w8a8-static")
    found = {}
    for offset in (0.0, 100.0):
        seam, consumer, seen, ranges = layer_with_an_outlier(reach=1.0, offset=offset)
        search = SeamSearch(seam, consumer, scheme, ranges, ranges, [seen], OsPlusChoices())
        found[offset] = search.run()[0]
    assert float(found[100.0].change.shift[0]) == pytest.approx(100.0, abs=1e-4)
    assert found[100.0].loss == pytest.approx(found[0.0].loss, rel=0.02)
