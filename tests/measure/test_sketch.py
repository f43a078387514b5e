import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skerry.measure.sketch import RELATIVE_ERROR, QuantileSketch, histogram

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)


def sketch_of(x):
    sketch = QuantileSketch()
    sketch.add(histogram(torch.as_tensor(x)))
    return sketch


# Normal float32 numbers: the sketch takes what is smaller than 2^-126 for 0.
numbers = st.floats(min_value=2.0**-126, max_value=2.0**127, width=32)
signed = st.one_of(numbers, numbers.map(lambda v: -v), st.just(0.0))


@given(st.lists(signed, min_size=1, max_size=300), st.sampled_from(QUANTILES))
def test_quantiles_are_within_one_percent(values, q):
    x = np.array(values, np.float32)
    truth = np.quantile(np.abs(x), q, method="inverted_cdf")
    assert sketch_of(x).result(q) == pytest.approx(truth, rel=RELATIVE_ERROR, abs=0)


@pytest.mark.parametrize("draw", ["normal", "cauchy", "lognormal", "uniform"])
def test_heavy_tails_are_within_one_percent(draw):
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=100_000),
        "cauchy": rng.standard_cauchy(100_000),
        "lognormal": rng.lognormal(0, 4, 100_000),
        "uniform": rng.uniform(size=100_000) * 1e-20,
    }[draw].astype(np.float32)
    sketch = sketch_of(x)
    for q in QUANTILES:
        assert sketch.result(q) == pytest.approx(
            np.quantile(np.abs(x), q, method="inverted_cdf"), rel=RELATIVE_ERROR
        )


@given(st.lists(st.lists(signed, max_size=50), min_size=1, max_size=5), st.randoms())
def test_merging_in_any_order_counts_the_same(parts, random):
    whole = sketch_of(np.array([v for part in parts for v in part], np.float32))
    random.shuffle(parts)
    merged = QuantileSketch()
    for part in parts:
        merged.merge(sketch_of(np.array(part, np.float32)))
    assert merged.first == whole.first or not whole.count
    np.testing.assert_array_equal(merged.counts, whole.counts)


def test_state_round_trip():
    sketch = sketch_of(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    again = QuantileSketch.from_state(sketch.state())
    assert [again.result(q) for q in QUANTILES] == [sketch.result(q) for q in QUANTILES]
    again.merge(sketch)
    assert again.count == 2000 and sketch.count == 1000


def test_nothing_is_not_a_number_and_nonfinite_is_nothing():
    assert np.isnan(QuantileSketch().result(0.5))
    assert sketch_of(np.array([np.nan, np.inf, -np.inf], np.float32)).count == 0


def test_only_octaves_in_use_are_kept():
    assert len(sketch_of(np.array([1.0, 1.5], np.float32)).counts) == 64


def test_float64_beyond_float32_counts_as_the_largest():
    assert sketch_of(np.array([1e300])).result(0.5) == pytest.approx(3.4e38, rel=RELATIVE_ERROR)
