"""Profiles: limits of every number, and the channels that made OS+ shift."""

import numpy as np
import pytest

from skerry.outliers.alignment import overlap
from skerry.outliers.find import find

from .models import random_batches, random_model
from .scanned import tables_of
from .tabled import activation, join, ordinary, table


def _site(low, high, **more):
    (profile,) = find(activation(0, "resid.out", low, high, **more)).profiles.sites
    return profile


def test_equal_channels_share_everything():
    p = _site(-np.ones(100), np.ones(100))
    assert (p.range_share_top1, p.range_share_top1pct, p.shift_gain, p.asymmetric_channels) == (0, 0, 1, 0)
    assert p.gini == pytest.approx(0) and p.channels_for_99 == 99


def test_lone_channel_owns_everything():
    low, high = np.zeros(100), np.zeros(100)
    low[17], high[17] = -5, 5
    p = _site(low, high)
    assert p.gini == pytest.approx(1 - 1 / 100) and p.channels_for_99 == 1
    assert p.range_share_top1 == p.range_share_top1pct == 1


def test_gini_equals_the_mean_difference():
    low, high = ordinary(60)
    size = np.maximum(-low, high)
    want = np.abs(size[:, None] - size).sum() / (2 * 60 * size.sum())
    assert _site(low, high).gini == pytest.approx(want)


def test_channels_of_opt_66b_are_shown_as_what_they_are():
    low, high = ordinary(200, size=1.0)
    low[30], high[30] = -97.0, -58.0
    low[121], high[121] = 5.7, 43.0
    found = find(activation(3, "attn.in", low, high, median=0.4))
    rows = {a.channel: a for a in found.profiles.asymmetry}
    assert list(rows) == [30, 121]
    assert (rows[30].centre, rows[30].half_width) == pytest.approx((-77.5, 19.5))
    assert (rows[121].centre, rows[121].half_width) == pytest.approx((24.35, 18.65))
    assert rows[30].asymmetry == pytest.approx(77.5 / 19.5) and rows[121].asymmetry == pytest.approx(
        24.35 / 18.65
    )
    (site,) = found.profiles.sites
    assert site.shift_gain == pytest.approx((43 + 97) / 39)  # the widest channel is what a shift leaves
    assert site.asymmetric_channels == 2 and site.num_outlier_channels == 2 and site.sign_consistency == 1.0
    assert site.range_share_top1 == pytest.approx(1 - (43 - low[np.arange(200) != 30].min()) / 140)
    by_channel = {f.channel: f for f in found.findings}
    assert (
        by_channel[30].value == -97 and by_channel[30].centre == -77.5 and by_channel[30].range == (-97, -58)
    )
    assert by_channel[121].value == 43 and by_channel[121].centre == pytest.approx(24.35)


def test_site_that_is_the_same_tensor_repeats_the_numbers_and_makes_no_finding():
    low, high = ordinary(50)
    low[7], high[7] = -200, 10
    same = {"sites": table("sites", layer=1, site=["resid.in"], same_as="0.resid.out", num_channels=50)}
    found = find(join(activation(0, "resid.out", low, high), same))
    assert [(f.layer, f.site) for f in found.findings] == [(0, "resid.out")]
    own, repeated = found.profiles.sites
    assert (repeated.layer, repeated.site, repeated.same_as) == (1, "resid.in", "0.resid.out")
    assert repeated.gini == own.gini and repeated.num_outlier_channels == own.num_outlier_channels == 1


def test_site_without_values_has_no_profile():
    empty = table("sites", layer=0, site=["mlp.out"], expert=3, num_tokens=0, num_channels=50)
    assert find({"sites": empty}).profiles.sites == ()


def test_profiles_of_a_model_are_finite_and_name_every_head_and_block():
    found = find(tables_of(random_model("llama"), random_batches(num_samples=4, length=24)))
    assert [(h.layer, h.head) for h in found.profiles.heads] == [(n, h) for n in range(2) for h in range(4)]
    assert [layer.layer for layer in found.profiles.layers] == [0, 1]
    for row in (*found.profiles.sites, *found.profiles.heads, *found.profiles.layers):
        numbers = [v for v in row.model_dump().values() if isinstance(v, float)]
        assert np.isfinite(numbers).all(), row
    assert all(0.5 < h.relative_entropy <= 1 for h in found.profiles.heads)
    harmonic = (1 / np.arange(1, 25)).sum() / 24
    assert all(
        h.uniform_mass == pytest.approx(harmonic) for h in found.profiles.heads if h.sink_position == 0
    )


def test_identical_single_places_overlap_with_the_chance_of_one_in_n():
    a = overlap("x and y", {7}, {7}, 500)
    assert (a.overlap, a.p_value, a.shared) == (1.0, pytest.approx(1 / 500), ("7",))
    assert a.expected == pytest.approx(1 / 500)


def test_expected_overlap_is_that_of_random_sets():
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(4000):
        left, right = (set(rng.choice(40, n, replace=False).tolist()) for n in (6, 9))
        draws.append(len(left & right) / len(left | right))
    a = overlap("x and y", set(range(6)), set(range(100, 109)), 40)
    assert a.expected == pytest.approx(np.mean(draws), abs=0.005) and a.overlap == 0 and a.p_value == 1


def test_channels_of_the_residual_and_rows_of_the_down_projection_line_up():
    low, high = ordinary(64)
    low[[5, 9]] = -300
    norm = np.ones(64) * 2.0
    norm[5] = 60.0
    lines = table(
        "lines",
        layer=1,
        site="w.down",
        axis="row",
        index=range(64),
        norm=norm,
        min=-norm,
        max=norm,
        mean_abs=1.0,
    )
    found = find(join(activation(1, "resid.out", low, high), {"lines": lines}))
    (a,) = found.profiles.alignment
    assert (a.left, a.right, a.shared) == (("5", "9"), ("5",), ("5",))
    assert a.p_value == pytest.approx(2 / 64) and "w.down" in a.relation
