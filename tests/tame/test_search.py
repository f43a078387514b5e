"""Thresholds, shifts and scales against closed forms; the searches against functions whose minimum is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.tame.search import coarse_to_fine, every
from skerry.tame.threshold import Ranges, balance, centre, reach, scale_of

finite = st.floats(-1e3, 1e3, allow_nan=False)


def made(pairs):
    low, high = zip(*[(min(p), max(p)) for p in pairs], strict=True)
    return Ranges(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))


def test_the_shift_of_the_papers_channels_takes_their_range_from_140_to_39():
    ranges = made([(-97, -58), (5.7, 43), (-1, 1)])
    z = centre(ranges)
    assert z.tolist() == pytest.approx([-77.5, 24.35, 0])
    assert (ranges.span, ranges.less(z).span) == (140, 39)


def test_a_threshold_brings_what_lies_beyond_to_it_and_leaves_the_rest():
    ranges = made([(-8, 2), (-1, 4), (-1, 1), (0, 0)])
    assert scale_of(ranges, 2.0).tolist() == [4, 2, 1, 1]


def test_a_threshold_at_the_largest_reach_changes_nothing():
    assert scale_of(made([(-8, 2), (-1, 4)]), 8.0).tolist() == [1, 1]


def test_two_thresholds_bound_the_two_sides():
    ranges = made([(-8, 2), (-1, 4)])
    s = scale_of(ranges, 1.0, ratio=4.0)
    after = ranges.over(s)
    assert after.low.min() == -4 and after.high.max() == 1


def test_enlarging_fully_fills_the_range_in_every_channel_whatever_the_threshold():
    ranges = made([(-8, 2), (-1, 4), (-0.5, 0.1)])
    one, other = (scale_of(ranges, t, below=1.0) for t in (2.0, 0.3))
    assert torch.allclose(one / one[0], other / other[0])
    assert torch.allclose(reach(ranges.over(one)), torch.full((3,), 2.0, dtype=torch.float64))


def test_channels_that_are_always_zero_keep_a_scale_of_one():
    assert scale_of(made([(0, 0), (0, 0)]), 1.0, below=1.0).tolist() == [1, 1]
    assert balance(made([(0, 0), (0, 0)]), torch.ones(2, dtype=torch.float64), 0.5).tolist() == [1, 1]


def test_balance_is_smoothquants_formula_up_to_a_factor():
    ranges, w = made([(-8, 2), (-1, 4), (-1, 1)]), torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    s = balance(ranges, w, 0.7)
    expected = torch.tensor([8.0, 4.0, 1.0], dtype=torch.float64) ** 0.7 / w**0.3
    assert torch.allclose(s / s[0], expected / expected[0])
    assert float(s.log().mean()) == pytest.approx(0, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(finite, finite), min_size=1, max_size=12),
    st.floats(1e-3, 1e3),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_scales_are_positive_and_nothing_reaches_beyond_the_thresholds(pairs, t, below, ratio):
    ranges = made(pairs)
    s = scale_of(ranges, t, below=below, ratio=ratio)
    assert bool((s > 0).all() & s.isfinite().all())
    after = ranges.over(s)
    assert float(after.high.max()) <= t * (1 + 1e-9)
    assert float(after.low.min()) >= -t * ratio * (1 + 1e-9)
    if below == 0:
        assert float(s.min()) >= 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(finite, finite), min_size=1, max_size=8),
    st.lists(st.tuples(finite, finite), min_size=1, max_size=8),
)
def test_joined_ranges_are_those_of_all_tokens(first, second):
    num = min(len(first), len(second))
    a, b = made(first[:num]), made(second[:num])
    both = a.joined(b)
    assert torch.equal(both.low, torch.minimum(a.low, b.low)) and torch.equal(
        both.high, torch.maximum(a.high, b.high)
    )


def test_every_threshold_goes_down_in_equal_steps_and_leaves_the_end_out():
    tried = every(lambda t: t, low=1.0, high=11.0, steps=100)
    assert [t.at for t in tried] == pytest.approx([11 - 0.1 * k for k in range(100)])


def test_a_tensor_below_the_published_lower_end_has_no_thresholds():
    assert every(lambda t: t, low=1.0, high=0.8, steps=100) == []


@settings(max_examples=60, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(1.5, 1e4))
def test_the_search_finds_the_lowest_point_of_a_valley_to_the_width_of_its_last_gap(place, span):
    low, high = 1.0, span
    bottom = low * (high / low) ** place
    tried = coarse_to_fine(lambda t: math.log(t / bottom) ** 2, low=low, high=high, coarse=8, fine=8)
    best = min(tried, key=lambda x: x.loss)
    # Every two refinements halve the gap beside the best; the grid's gap is a seventh of the whole in ratio.
    assert abs(math.log(best.at / bottom)) <= math.log(span) / 7 / 2**2
    assert len(tried) == 16


def test_a_loss_that_stops_early_above_the_best_changes_nothing_of_what_is_found():
    def exact(t):
        return (math.log(t) - 1) ** 2 + 0.1

    best = [math.inf]

    def lazy(t):
        full = exact(t)
        best[0] = min(best[0], full)
        return full if full <= best[0] else best[0] * 1.001

    one = coarse_to_fine(exact, low=0.1, high=50.0, coarse=9, fine=6)
    other = coarse_to_fine(lazy, low=0.1, high=50.0, coarse=9, fine=6)
    assert [t.at for t in one] == [t.at for t in other]


def test_a_range_without_width_is_tried_once():
    assert [t.at for t in coarse_to_fine(lambda t: t, low=2.0, high=2.0, coarse=5, fine=3)] == [2.0]
    assert coarse_to_fine(lambda t: t, low=0.0, high=0.0, coarse=5, fine=3) == []
