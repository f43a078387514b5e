"""Clipping beside its control: the same number of values, moved by the same amounts."""

import math

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import Site, resolve
from skerry.corpus.batch import Batch
from skerry.impact.clipping import change_group, clip, disturb, place_of, price_clipping, sizes
from skerry.measure.sketch import QuantileSketch, histogram
from skerry.run.tables import from_rows

from .planted import own_text


def tailed(rows=200, columns=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=g)
    return x.sign() * x.abs() ** 3


def place(x, q):
    sketch = QuantileSketch()
    sketch.add(histogram(x))
    return place_of(sketch, q)


def test_the_threshold_is_the_quantile_and_the_share_above_it_is_exact():
    x = tailed()
    for q in (0.9, 0.99, 0.999):
        found = place(x, q)
        assert found.threshold == pytest.approx(float(x.abs().flatten().quantile(q)), rel=0.05)
        assert found.share == pytest.approx(float((x.abs() > found.threshold).double().mean()), abs=1e-12)


def test_clipping_is_clamp_and_everything_clips_nothing():
    x = tailed()
    found = place(x, 0.95)
    done = clip(x, found, None)
    assert torch.equal(done.values, x.clamp(-found.threshold, found.threshold))
    assert done.number == int((done.values != x).sum()) > 0
    none = place(x, 1.0)
    assert clip(x, none, None).number == 0
    assert disturb(x, none, None, torch.Generator().manual_seed(0)).number == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.6, 0.9, 0.99, 0.999]))
def test_the_control_moves_as_many_smaller_values_by_the_same_amounts(seed, q):
    x = tailed(seed=seed)
    found = place(x, q)
    clipped = clip(x, found, None)
    control = disturb(x, found, None, torch.Generator().manual_seed(seed))
    assert abs(control.number - clipped.number) <= 1
    moved = control.values != x
    assert int(moved.sum()) <= control.number
    assert (x[moved].abs() <= found.threshold).all(), "a large value was moved"
    # Towards zero, and through it where the amount is larger than the value.
    step = control.values - x
    assert ((step[moved] < 0) == (x[moved] >= 0)).all()
    if clipped.number > 20:
        norm = (clipped.values - x).norm()
        assert float(step.norm() / norm) == pytest.approx(1, abs=0.1 if q > 0.99 else 0.03)


def test_draws_differ_and_a_seed_repeats_them():
    x = tailed()
    found = place(x, 0.99)
    draws = [disturb(x, found, None, torch.Generator().manual_seed(s)).values for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_padding_is_neither_clipped_nor_counted():
    x = tailed()
    counts = torch.arange(200) < 100
    found = place(x[counts], 0.9)
    for done in (clip(x, found, counts), disturb(x, found, counts, torch.Generator().manual_seed(0))):
        assert torch.equal(done.values[~counts], x[~counts])
        assert done.number == pytest.approx(found.share * 100 * 40, abs=2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bert"])
def test_both_groups_reach_their_places(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, padding="right")
    batches = [Batch(ids, keep, torch.arange(2))]
    inputs = sizes(anatomy, batches, "inputs")
    experts = {s for s in inputs if s.expert is not None}
    assert {Site(0, "attn.in"), Site(1, "attn.mix")} <= set(inputs)
    assert bool(experts) == (name == "mixtral")
    assert inputs[Site(0, "attn.in")].count == int(keep.sum()) * 32
    residual = sizes(anatomy, batches, "residual")
    assert list(residual) == [Site(0, "resid.out")]
    seen = []

    def edit(site, x, _places):
        seen.append(site)
        return x

    with change_group(anatomy, "inputs", edit), torch.no_grad():
        anatomy.trunk(ids)
    assert len(seen) == len(set(seen)), "a tensor that several maps read was changed twice"


def test_the_curve_falls_and_has_its_controls():
    model = zoo.tiny("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = price_clipping(resolve(model), own_text(model), quantiles=(0.5, 0.99, 1.0), draws=2)
    assert len(rows) == 2 * 3 * 3 and from_rows("clipping", rows).num_rows == 18
    for group in ("inputs", "residual"):
        mine = [r for r in rows if r["site"] == group]
        half, most, none = (
            next(r for r in mine if not r["control"] and r["quantile"] == q) for q in (0.5, 0.99, 1.0)
        )
        assert half["change"] > 0 and half["change"] > most["change"]
        assert none["change"] == pytest.approx(0, abs=1e-6)
        assert half["threshold"] < most["threshold"] < none["threshold"]
        assert none["share_clipped"] == 0 and 0.2 < half["share_clipped"] < 0.6
        draws = [r for r in mine if r["control"] and r["quantile"] == 0.99]
        assert {r["draw"] for r in draws} == {0, 1} and len({r["change"] for r in draws}) == 2
        assert all(math.isfinite(r["ci_low"]) for r in mine)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
