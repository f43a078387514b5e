"""Intervals cover as often as they say; chances count themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.causes.bootstrap import Interval, bootstrap, chance


def coverage(draw, truth, num, *, num_inputs):
    """Share of intervals that hold the truth."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(num):
        found = bootstrap(draw(rng, num_inputs), seed=i + 10_000)
        hits += found.low <= truth <= found.high
    return hits / num


def test_95_of_100_intervals_hold_the_mean():
    # 500 trials: three standard errors are 3 %; the percentile interval of 60 inputs is 1 % short (Student's t has 2.00, not 1.96).
    found = coverage(lambda rng, n: rng.normal(1.0, 2.0, n), 1.0, 500, num_inputs=60)
    assert 0.91 <= found <= 0.97
    skewed = coverage(lambda rng, n: rng.exponential(1.0, n), 1.0, 500, num_inputs=60)
    assert 0.88 <= skewed <= 0.97


def test_weighted_intervals_hold_the_ratio_of_sums():
    """Longer inputs have larger values: w = 0.5 + u and x = u give E[w x] / E[w] = (1/4 + 1/3) / 1."""
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(500):
        u = rng.random(60)
        found = bootstrap(u, 0.5 + u, seed=i + 10_000)
        hits += found.low <= 7 / 12 <= found.high
    assert 0.91 <= hits / 500 <= 0.97


def test_a_wider_level_is_a_wider_interval():
    x = np.random.default_rng(0).normal(size=40)
    narrow, usual, wide = (bootstrap(x, level=level) for level in (0.5, 0.95, 0.99))
    assert wide.low < usual.low < narrow.low < narrow.high < usual.high < wide.high
    assert narrow.value == usual.value == wide.value == pytest.approx(x.mean())


def test_the_interval_has_the_width_of_the_standard_error():
    x = np.random.default_rng(0).normal(0, 3, 400)
    found = bootstrap(x, resamples=4000)
    half = 1.96 * x.std() / math.sqrt(400)
    assert found.low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.15 * half)


def test_the_same_seed_gives_the_same_interval_and_another_nearly():
    x = np.random.default_rng(0).normal(size=30)
    assert bootstrap(x, seed=3) == bootstrap(list(x), seed=3)
    assert bootstrap(x, seed=3) != bootstrap(x, seed=4)


def test_weights_of_zero_and_values_that_are_no_numbers_are_left_out():
    x = [1.0, math.nan, 3.0, math.inf, 100.0, 5.0]
    found = bootstrap(x, [1.0, 1.0, 1.0, 1.0, 0.0, math.nan])
    assert found == bootstrap([1.0, 3.0])
    assert found.value == 2.0
    assert bootstrap([1.0, 3.0], [3.0, 1.0]).value == 1.5


def test_one_input_has_a_value_and_no_interval_and_none_has_nothing():
    value, low, high = bootstrap([4.0])
    assert value == 4.0 and math.isnan(low) and math.isnan(high)
    for nothing in ([], [math.nan], [math.nan, math.inf]):
        assert all(math.isnan(x) for x in bootstrap(nothing))
    assert isinstance(bootstrap([]), Interval)


def test_equal_inputs_have_an_interval_of_no_width():
    assert bootstrap([2.0] * 5) == (2.0, 2.0, 2.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.integers(0, 5))
def test_the_interval_lies_within_the_values(values, seed):
    found = bootstrap(values, seed=seed, resamples=50)
    slack = 1e-9 * max(1.0, max(map(abs, values)))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


def test_a_chance_counts_the_effect_itself_and_both_signs():
    assert chance(5.0, [1.0, -2.0, 3.0]) == 1 / 4
    assert chance(-2.0, [1.0, -2.0, 3.0]) == 3 / 4
    assert chance(0.0, [1.0]) == 1.0
    assert chance(3.0, [math.nan, 1.0]) == 1 / 2


def test_no_chance_without_controls_or_without_an_effect():
    assert chance(5.0, []) is None
    assert chance(5.0, [math.nan, math.inf]) is None
    assert chance(math.nan, [1.0, 2.0]) is None


def test_chances_of_controls_against_each_other_are_uniform():
    rng = np.random.default_rng(0)
    found = [chance(rng.normal(), list(rng.normal(size=19))) for _ in range(2000)]
    for level in (0.05, 0.25, 0.5):
        assert np.mean(np.array(found) <= level + 1e-12) == pytest.approx(level, abs=0.025)
