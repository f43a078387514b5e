import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from skerry.measure.moments import Moments, pool


def moments_of(x):
    """Straight from the definition; x is [value, series]."""
    c = x - x.mean(0)
    return Moments(
        np.full(x.shape[1], len(x)), np.stack([x.mean(0), (c**2).sum(0), (c**3).sum(0), (c**4).sum(0)])
    )


def test_shape_is_that_of_scipy():
    x = np.random.default_rng(0).gamma(2.0, size=(500, 7)) + 100
    m = moments_of(x)
    np.testing.assert_allclose(m.skewness, scipy.stats.skew(x))
    np.testing.assert_allclose(m.kurtosis, scipy.stats.kurtosis(x, fisher=False))
    np.testing.assert_allclose(m.variance, x.var(0))
    np.testing.assert_allclose(m.mean_square, (x**2).mean(0))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 10**6))
def test_parts_pool_to_the_whole(sizes, seed):
    sizes = [*sizes, 3]
    x = np.random.default_rng(seed).normal(5, 2, size=(sum(sizes), 3))
    parts = np.split(x, np.cumsum(sizes)[:-1])
    total = Moments.zeros(3)
    for part in parts:
        total.merge(moments_of(part) if len(part) else Moments.zeros(3))
    whole = moments_of(x)
    np.testing.assert_array_equal(total.count, whole.count)
    np.testing.assert_allclose(total.sums, whole.sums, rtol=1e-9, atol=1e-9)


def test_series_pool_to_one():
    x = np.random.default_rng(1).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 100] + [0, 0, 1, 2, 3, 50]
    pooled = moments_of(x).pooled()
    assert pooled.count[0] == x.size
    assert pooled.kurtosis[0] == pytest.approx(scipy.stats.kurtosis(x.ravel(), fisher=False))
    assert pooled.skewness[0] == pytest.approx(scipy.stats.skew(x.ravel()))


def test_one_part_pools_to_itself():
    m = moments_of(np.random.default_rng(2).normal(size=(9, 4)))
    again = pool(m.count[None], m.sums[None])
    np.testing.assert_array_equal(again.sums, m.sums)


def test_a_constant_series_has_no_shape():
    m = moments_of(np.full((10, 2), 0.1))
    assert np.isnan(m.skewness).all() and np.isnan(m.kurtosis).all()
    assert m.mean == pytest.approx([0.1, 0.1])


def test_nothing_read_is_not_a_number():
    m = Moments.zeros(2)
    assert np.isnan(m.mean).all() and np.isnan(m.variance).all() and np.isnan(m.kurtosis).all()


def test_tiny_and_huge_values_keep_their_shape():
    x = np.random.default_rng(3).normal(size=(400, 1))
    for scale in (1e-60, 1e60):
        assert moments_of(x * scale).kurtosis[0] == pytest.approx(moments_of(x).kurtosis[0])
