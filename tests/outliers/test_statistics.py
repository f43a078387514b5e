"""Grouped statistics, the test of recurrence and its correction, and the null of attention, against plain definitions."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from skerry.outliers.fdr import benjamini_hochberg, recurrence_p
from skerry.outliers.frames import Frame
from skerry.outliers.robust import Standing
from skerry.outliers.uniform import uniform_alpha


def _frame(rng, num=500):
    sites = rng.choice(["resid.in", "mlp.out", "attn.v"], num)
    layers = [None if x == 3 else int(x) for x in rng.integers(0, 4, num)]
    columns = {
        "layer": pa.array(layers, pa.int32()),
        "site": pa.array(sites),
        "expert": pa.nulls(num, pa.int32()),
    }
    return Frame(pa.table(columns)), rng.standard_normal(num)


@pytest.mark.parametrize("seed", range(3))
def test_group_statistics_equal_those_of_each_group(seed):
    rng = np.random.default_rng(seed)
    frame, x = _frame(rng)
    x[rng.random(len(x)) < 0.1] = np.nan
    median, upper = frame.quantiles(x, (0.5, 0.75))
    total, largest, rank = frame.sum(x), frame.max(x), frame.rank(x)
    for i, (_, rows) in enumerate(frame.groups()):
        v = x[rows][~np.isnan(x[rows])]
        assert np.isclose(median[i], np.quantile(v, 0.5)) and np.isclose(upper[i], np.quantile(v, 0.75))
        assert np.isclose(total[i], v.sum()) and largest[i] == v.max()
        assert x[rows][rank[rows] == 0] == v.max() and sorted(rank[rows]) == list(range(len(rows)))


def test_null_layers_are_a_group_of_their_own():
    table = pa.table({"layer": pa.array([0, None, 0, None], pa.int32()), "site": ["a", "a", "a", "b"]})
    frame = Frame(table, ("layer", "site"))
    assert sorted(frame.keys, key=str) == [(0, "a"), (None, "a"), (None, "b")]
    assert [len(frame.rows(frame.index[key])) for key in ((0, "a"), (None, "a"), (None, "b"))] == [2, 1, 1]


def test_empty_table_has_no_groups():
    frame = Frame(
        pa.table({"layer": pa.array([], pa.int32()), "site": pa.array([], pa.string())}), ("layer", "site")
    )
    assert frame.keys == [] and len(frame.quantiles(np.zeros(0), (0.5,))[0]) == 0


def test_false_discovery_rate_equals_scipys():
    p = np.random.default_rng(0).random(200) ** 3
    assert np.allclose(benjamini_hochberg(p), stats.false_discovery_control(p, method="bh"))


def test_untested_places_do_not_count_as_tested():
    p = np.array([0.001, np.nan, 0.5, np.nan])
    q = benjamini_hochberg(p)
    assert np.allclose(q[[0, 2]], [0.002, 0.5]) and np.isnan(q[[1, 3]]).all()


def test_one_channel_of_d_that_always_hits_has_p_of_d_to_the_minus_n():
    assert np.isclose(recurrence_p(np.array([8]), np.array([8]), np.array([1 / 32]))[0], 32.0**-8)
    assert recurrence_p(np.array([0]), np.array([8]), np.array([0.1]))[0] == 1.0


def test_score_of_a_log_normal_is_the_usual_z():
    rng = np.random.default_rng(0)
    frame = Frame(pa.table({"layer": pa.array([0] * 20000, pa.int32())}), ("layer",))
    z = rng.standard_normal(20000)
    score = Standing(frame, np.exp(0.3 * z + 2)).score
    assert np.allclose(score * (1 + 1.79 / 20000**0.5), z, atol=0.15)


def test_standard_error_of_the_scale_is_that_of_gaussian_samples():
    rng = np.random.default_rng(0)
    for d in (64, 384):
        median, upper = np.quantile(rng.standard_normal((4000, d)), (0.5, 0.75), axis=1)
        scale = (upper - median) / 0.6745
        assert np.isclose(scale.std() * d**0.5, 1.79, rtol=0.06)


def test_equal_peers_do_not_make_a_percent_look_like_a_mountain():
    frame = Frame(pa.table({"layer": pa.array([0] * 50, pa.int32())}), ("layer",))
    score = Standing(frame, np.append(np.ones(49), 1.01)).score
    assert score[-1] < 0.25


def test_few_peers_have_no_score():
    frame = Frame(pa.table({"layer": pa.array([0] * 7, pa.int32())}), ("layer",))
    assert np.isnan(Standing(frame, np.arange(1.0, 8.0)).score).all()


def _brute(lengths, visible):
    """alpha of uniform attention, exposure and inputs per position; `visible(i, k)` says what a query sees."""
    longest = max(lengths)
    total, exposure, num = np.zeros(longest), np.zeros(longest), np.zeros(longest, int)
    for n in lengths:
        seen = np.array([[visible(i, k) for k in range(n)] for i in range(n)], float)
        probs = seen / seen.sum(1, keepdims=True)
        total[:n] += probs.sum(0) / seen.sum(0)
        exposure[:n] += seen.sum(0)
        num[:n] += 1
    return total / num, exposure, num


@pytest.mark.parametrize("lengths", [[12], [12, 12, 12], [5, 12, 9, 12]])
@pytest.mark.parametrize("window", [None, 4, 1])
def test_uniform_causal_attention_equals_the_definition(lengths, window):
    want, exposure, num = _brute(lengths, lambda i, k: k <= i and (window is None or i - k < window))
    assert np.allclose(uniform_alpha(num, exposure), want)


@pytest.mark.parametrize("lengths", [[12], [5, 12, 9]])
def test_uniform_bidirectional_attention_equals_the_definition(lengths):
    want, exposure, num = _brute(lengths, lambda i, k: True)
    assert np.allclose(uniform_alpha(num, exposure), want)


def test_first_key_of_uniform_causal_attention_gets_the_harmonic_number_over_the_length():
    num = np.full(64, 7)
    assert np.isclose(uniform_alpha(num, 7.0 * np.arange(64, 0, -1))[0], (1 / np.arange(1, 65)).sum() / 64)


def test_strange_masks_get_the_mean_share():
    exposure = np.array([3.0, 9.0, 2.0, 9.0])
    assert np.allclose(uniform_alpha(np.ones(4, int), exposure), 1 / exposure)
