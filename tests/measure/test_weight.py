import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.errors import MergeMismatch
from skerry.measure import ROW_TILE, WeightStats, weight_stats
from skerry.run.tables import TABLES


def draw(rows, columns, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g) * 0.02
    if columns > 8 and rows > 8:
        w[3] *= 30
        w[:, 5] += 1.0
        w[:, 6] = 0.0
        w[7, 8] = 9.0
    return w


def naive(w):
    x = w.double().numpy()
    lines = {}
    for axis, along in (("row", 1), ("column", 0)):
        lines[axis] = {
            "min": x.min(along),
            "max": x.max(along),
            "mean": x.mean(along),
            "mean_abs": np.abs(x).mean(along),
            "std": x.std(along),
            "norm": np.linalg.norm(x, axis=along),
            "skewness": scipy.stats.skew(x, axis=along),
            "kurtosis": scipy.stats.kurtosis(x, axis=along, fisher=False),
        }
    matrix = {
        "num_rows": len(x),
        "num_columns": x.shape[1],
        "min": x.min(),
        "max": x.max(),
        "abs_max": np.abs(x).max(),
        "mean": x.mean(),
        "mean_abs": np.abs(x).mean(),
        "std": x.std(),
        "skewness": scipy.stats.skew(x.ravel()),
        "kurtosis": scipy.stats.kurtosis(x.ravel(), fisher=False),
        "zero": (x == 0).mean(),
        "num_nan": 0,
        "num_inf": 0,
    }
    return matrix, lines


def check(stats, w, *, rtol=2e-5):
    result = stats.result()
    with np.errstate(all="ignore"):
        matrix, lines = naive(w)
    for name, truth in matrix.items():
        np.testing.assert_allclose(result.matrix[name], truth, rtol=rtol, atol=1e-6, err_msg=name)
    for axis, columns in lines.items():
        at = result.lines["axis"] == axis
        assert result.lines["index"][at].tolist() == list(range(at.sum()))
        for name, truth in columns.items():
            np.testing.assert_allclose(
                result.lines[name][at], truth, rtol=rtol, atol=2e-5, err_msg=f"{axis} {name}"
            )
    size = w.abs().double().numpy()
    assert result.matrix["median"] == pytest.approx(np.quantile(size, 0.5, method="inverted_cdf"), rel=0.01)
    order = np.argsort(-size, axis=None, kind="stable")[: stats.largest.limit]
    assert result.entries["row"].tolist() == (order // w.shape[1]).tolist()
    assert result.entries["column"].tolist() == (order % w.shape[1]).tolist()
    np.testing.assert_array_equal(result.entries["value"], w.double().numpy().ravel()[order])


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(40, 30), (5, 300), (300, 17), (130, 1100), (9, 16)])
def test_statistics_are_those_of_the_definition(shape, dtype, is_transposed, path):
    w = draw(*shape).to(dtype)
    w = w.T.contiguous().T if is_transposed else w
    check(weight_stats(w), w)


def test_a_vector_is_a_matrix_of_one_row(path):
    w = 1 + 0.01 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    result = weight_stats(w).result()
    assert (result.matrix["num_rows"], result.matrix["num_columns"]) == (1, 200)
    truth = scipy.stats.kurtosis(w.double().numpy(), fisher=False)
    assert result.matrix["kurtosis"] == pytest.approx(truth, rel=1e-6)
    assert result.lines["kurtosis"][0] == pytest.approx(truth, rel=1e-6)
    np.testing.assert_array_equal(result.lines["mean"][1:], w.double().numpy())


def test_views_with_gaps_are_read_in_place(path, assert_same):
    wide = draw(50, 90)
    for view in (wide[:, 10:60], wide[::2, ::3], wide.T[5:40]):
        assert_same(
            weight_stats(view).result(), weight_stats(view.contiguous()).result(), rtol=2e-5, atol=1e-5
        )


@pytest.mark.parametrize("is_transposed", [False, True])
def test_nonfinite_entries_are_counted_located_and_left_out(is_transposed, path):
    w = draw(150, 40)
    w[2, 3], w[140, 39], w[140, 1] = torch.nan, torch.inf, -torch.inf
    view = w.T.contiguous().T if is_transposed else w
    result = weight_stats(view).result()
    assert (result.matrix["num_nan"], result.matrix["num_inf"]) == (1, 2)
    missing = result.nonfinite
    assert missing["kind"].tolist() == ["nan", "inf", "inf"]
    assert missing["position"].tolist() == [2, 140, 140] and missing["channel"].tolist() == [3, 1, 39]
    good = w[torch.isfinite(w)].double().numpy()
    assert result.matrix["kurtosis"] == pytest.approx(scipy.stats.kurtosis(good, fisher=False), rel=1e-5)
    assert all(np.isfinite(v).all() for v in result.matrix.values())
    row = w[140].double().numpy()
    assert result.lines["mean"][140] == pytest.approx(row[np.isfinite(row)].mean(), rel=1e-5)
    assert np.isfinite(result.entries["value"]).all()


@pytest.mark.parametrize("value", [0.0, 3.5, torch.nan])
def test_constant_matrices(value, path):
    result = weight_stats(torch.full((20, 30), value)).result()
    if value != value:
        assert (
            result.matrix["num_nan"] == 600
            and np.isnan(result.matrix["median"])
            and not len(result.entries["row"])
        )
    else:
        assert result.matrix["median"] == pytest.approx(value, rel=0.01) and result.matrix[
            "std"
        ] == pytest.approx(0)
        assert np.isnan(result.matrix["kurtosis"]) and result.matrix["zero"] == (value == 0)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_any_scale(scale, path):
    w = draw(60, 50).double()
    a, b = ((weight_stats((w * s).float())).result() for s in (scale, 1.0))
    np.testing.assert_allclose(a.lines["kurtosis"], b.lines["kurtosis"], rtol=1e-4)
    assert a.matrix["kurtosis"] == pytest.approx(b.matrix["kurtosis"], rel=1e-4)


def test_a_large_matrix_has_its_median_sampled(path):
    w = torch.randn(1500, 1000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 1000)
    stats = weight_stats(w)
    assert stats.sketch.count < w.numel() / 8
    assert stats.result().matrix["median"] == pytest.approx(float(w.abs().median()), rel=0.015)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(3)), cut=st.integers(0, 3), is_transposed=st.booleans(), is_one=st.booleans()
)
def test_merged_in_any_order_equals_all_at_once(order, cut, is_transposed, is_one, path, assert_same):
    w = draw(2 * ROW_TILE + 70, 33)
    w[ROW_TILE + 5, 3] = torch.nan
    w = w.T.contiguous().T if is_transposed else w
    whole = weight_stats(w)
    left, right = WeightStats(*w.shape), WeightStats(*w.shape)
    for i, part in enumerate(order):
        first = part * ROW_TILE
        (left if i < cut and not is_one else right).update(w[first : first + ROW_TILE], first)
    right.merge(left)
    assert_same(right.result(), whole.result())
    np.testing.assert_array_equal(right.sketch.counts, whole.sketch.counts)


def test_state_round_trip(path, assert_same):
    w = draw(40, 30)
    w[1, 1] = torch.inf
    stats = weight_stats(w, top_k=5)
    again = WeightStats.from_state(stats.state())
    assert_same(again.result(), stats.result(), rtol=0)


def test_columns_are_those_of_the_tables(path):
    for stats in (WeightStats(4, 3), weight_stats(draw(4, 3)), weight_stats(torch.full((2, 2), torch.nan))):
        result = stats.result()
        place = {"layer", "site", "expert"}
        assert set(result.matrix) == set(TABLES["matrices"]) - place
        assert set(result.lines) == set(TABLES["lines"]) - place
        assert set(result.entries) == set(TABLES["entries"]) - place
        assert set(result.nonfinite) == set(TABLES["nonfinite"]) - place - {"sample"}
        for columns in (result.lines, result.entries, result.nonfinite):
            assert len({len(v) for v in columns.values()}) == 1


def test_parameters_need_no_detaching(path):
    assert weight_stats(torch.nn.Parameter(torch.ones(3, 3))).result().matrix["max"] == 1


def test_an_empty_matrix_has_nothing_to_say(path):
    result = weight_stats(torch.zeros(0, 5)).result()
    assert np.isnan(result.matrix["max"]) and len(result.lines["axis"]) == 5


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(MergeMismatch, match="rows 0 to 5 of width 3 do not fit a 4 x 3 matrix"):
        WeightStats(4, 3).update(torch.zeros(5, 3))
    with pytest.raises(MergeMismatch, match=f"a multiple of {ROW_TILE}, not at row 7"):
        WeightStats(40, 3).update(torch.zeros(5, 3), 7)
    with pytest.raises(MergeMismatch, match="same shape; here they have"):
        WeightStats(4, 3).merge(WeightStats(3, 4))


def test_repr_says_what_it_holds():
    assert repr(WeightStats(4, 3)) == "<WeightStats of a 4 x 3 matrix; .result()>"
