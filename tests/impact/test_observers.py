import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.errors import EmptyBatch, MergeMismatch, UnknownOption
from skerry.impact.observers import SHRINK, SignedSketch, find_range, range_of, upper_quantile
from skerry.impact.quantize import Grid, fake_quantize, find_grid, observe
from skerry.impact.scheme import TensorSpec
from skerry.measure.sketch import RELATIVE_ERROR

STATIC = [
    "int8:tensor:static",
    "int4:column:static",
    "int8:asym:tensor:static:p99",
    "int8:tensor:static:p100",
    "int4:tensor:static:mse",
    "int4:asym:tensor:static:mse",
    "int8:tensor:static:tokenwise0.9",
]


def spec_of(text):
    return TensorSpec.parse(text)


def tailed(rows=64, columns=48, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=g)
    return x.sign() * x.abs() ** 3 + 0.2


def read(spec, parts):
    found = range_of(spec)
    for part in parts:
        found.update(part)
    return found


# The tensor at hand.


def test_a_percentile_is_the_quantile_of_numpy_on_both_sides():
    x = tailed()
    low, high = np.quantile(x.numpy(), [0.005, 0.995])
    found = find_range(x, spec_of("int8:tensor:p99"))
    assert found.low.item() == pytest.approx(low, rel=1e-5)
    assert found.high.item() == pytest.approx(high, rel=1e-5)
    rows = find_range(x, spec_of("int8:token:p95"))
    expected = np.quantile(x.numpy(), [0.025, 0.975], axis=1)
    np.testing.assert_allclose(rows.low[:, 0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(rows.high[:, 0], expected[1], rtol=1e-5)
    columns = find_range(x, spec_of("int8:column:p95"))
    np.testing.assert_allclose(columns.high[0], np.quantile(x.numpy(), 0.975, axis=0), rtol=1e-5)
    groups = find_range(x.unflatten(1, (3, 16)), spec_of("int8:group16:p95"))
    expected = np.quantile(x.numpy().reshape(64, 3, 16), 0.975, axis=2)
    np.testing.assert_allclose(groups.high[..., 0], expected, rtol=1e-5)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_upper_quantile_is_the_linear_quantile(values, q):
    x = torch.tensor([values], dtype=torch.float64)
    assert upper_quantile(x, q).item() == pytest.approx(np.quantile(x[0].numpy(), q), abs=1e-9, rel=1e-9)


def test_tokenwise_is_the_quantile_over_tokens_of_their_extremes():
    x = tailed(rows=200)
    x[7] *= 50  # one token of 200: beyond the 0.99 quantile
    found = find_range(x, spec_of("int8:tensor:tokenwise0.99"))
    assert found.high.item() == pytest.approx(np.quantile(x.amax(1).numpy(), 0.99), rel=1e-5)
    assert found.low.item() == pytest.approx(-np.quantile(-x.amin(1).numpy(), 0.99), rel=1e-5)
    assert found.high < x.max() / 10


@pytest.mark.parametrize(
    "text",
    [
        "int4:channel:mse",
        "int3:asym:channel:mse",
        "int8:tensor:mse",
        "int4:group16:mse",
        "int2:column:mse",
        "fp8_e5m2:channel:mse",
    ],
)
def test_mse_is_the_shrink_factor_with_the_least_error_of_all(text):
    spec = spec_of(text)
    x = tailed(24, 48)
    got = fake_quantize(x, spec)
    plain = TensorSpec.parse(text.replace(":mse", ""))
    extremes = find_range(x.unflatten(1, (-1, 16)) if spec.group_size else x, plain)
    size = spec.group_size or 48
    dims = {"tensor": (0, 1, 2), "column": (0,)}.get(spec.granularity, (2,))

    def errors(y):  # per slice
        e = (
            (y.double() - x.double())
            .square()
            .unflatten(1, (-1, size) if spec.granularity != "column" else (48, 1))
        )
        return e.sum(dims)

    least = torch.stack(
        [
            errors(fake_quantize(x, plain, find_grid(extremes.low * f, extremes.high * f, plain)))
            for f in SHRINK
        ]
    ).amin(0)
    torch.testing.assert_close(errors(got), least, rtol=1e-5, atol=0)
    assert (least < errors(fake_quantize(x, plain))).any() or spec.number == "int8"


def test_mse_of_a_tensor_larger_than_one_chunk_is_the_same_search():
    spec = spec_of("int4:tensor:mse")
    x = tailed(700, 200)
    found = find_range(x, spec)
    errors = []
    for factor in SHRINK:
        grid = find_grid(x.amin().reshape(1, 1) * factor, x.amax().reshape(1, 1) * factor, spec)
        errors.append(float((fake_quantize(x, spec, grid) - x).double().square().sum()))
    assert found.high.item() == pytest.approx(x.max().item() * SHRINK[int(np.argmin(errors))], rel=1e-6)


def test_the_search_has_at_least_80_steps_from_1_to_a_fifth():
    assert len(SHRINK) >= 80 and SHRINK[0] == 1 and SHRINK[-1] == pytest.approx(0.2)


def test_mse_keeps_the_range_where_nothing_is_gained():
    x = torch.tensor([[-8.0, 7.0] * 8, [0.0] * 16])
    # int4 with a step of 15/15: all values are levels, so no factor has less error than 1.
    found = find_range(x, spec_of("int4:asym:channel:mse"))
    assert found.low.flatten().tolist() == [-8, 0] and found.high.flatten().tolist() == [7, 0]


@pytest.mark.parametrize("observer", ["p99", "mse", "tokenwise0.9", "minmax"])
def test_nan_at_hand_makes_the_range_nan(observer):
    x = tailed()
    x[3, 4] = torch.nan
    found = find_range(x, spec_of(f"int8:tensor:{observer}"))
    assert torch.isnan(found.low).all() and torch.isnan(found.high).all()


@pytest.mark.parametrize("observer", ["p99", "mse", "tokenwise0.9", "minmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_observer_takes_every_dtype_one_value_and_views(observer, dtype):
    spec = spec_of(f"int4:asym:tensor:{observer}")
    x = tailed().to(dtype)
    assert observe(x, spec).scale.dtype == dtype
    assert torch.equal(fake_quantize(x.T, spec), fake_quantize(x.T.contiguous(), spec))
    one = torch.tensor([[2.5]], dtype=dtype)
    assert find_range(one, spec).high.item() == 2.5
    assert torch.equal(fake_quantize(torch.zeros(3, 4, dtype=dtype), spec), torch.zeros(3, 4, dtype=dtype))


# Accumulators.


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(STATIC),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
    st.integers(0, 5),
)
def test_merging_in_any_order_and_bracketing_equals_all_at_once(text, sizes, random, cut):
    spec = spec_of(text)
    parts = [tailed(size, 12, seed=i) * 10.0 ** (i - 2) for i, size in enumerate(sizes)]
    whole = torch.cat(parts)
    if not len(whole):
        whole = parts[0] = torch.ones(1, 12)
    at_once = read(spec, [whole]).result()
    random.shuffle(parts)
    cut = min(cut, len(parts))
    left, right = [read(spec, [p]) for p in parts[:cut]], [read(spec, [p]) for p in parts[cut:]]
    # (a + (b + c)) + ((d + e) + f), in a random order of the parts
    first, second = range_of(spec), range_of(spec)
    for other in left:
        first.merge(other)
    for other in reversed(right):
        other.merge(second)
        second = other
    first.merge(second)
    assert torch.equal(first.result().low, at_once.low)
    assert torch.equal(first.result().high, at_once.high)


@pytest.mark.parametrize("text", STATIC)
def test_merge_leaves_the_other_as_it_was(text):
    spec = spec_of(text)
    a, b = read(spec, [tailed(seed=1)]), read(spec, [tailed(seed=2)])
    before = b.result()
    a.merge(b)
    a.update(tailed(seed=3) * 100)
    assert all(torch.equal(x, y) for x, y in zip(before, b.result(), strict=True))


def test_extremes_are_exact_per_tensor_and_per_column():
    parts = [tailed(seed=i) for i in range(3)]
    whole = torch.cat(parts)
    tensor = read(spec_of("int8:tensor:static"), parts).result()
    assert tensor.low.shape == (1, 1) and tensor.low == whole.min() and tensor.high == whole.max()
    columns = read(spec_of("int8:column:static"), parts).result()
    assert torch.equal(columns.low[0], whole.amin(0)) and torch.equal(columns.high[0], whole.amax(0))


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_counted_percentiles_are_within_one_percent(percent, shift):
    parts = [tailed(seed=i) + shift for i in range(4)]
    found = read(spec_of(f"int8:tensor:static:p{percent}"), parts).result()
    share = percent / 100
    low, high = np.quantile(
        torch.cat(parts).numpy(), [(1 - share) / 2, (1 + share) / 2], method="inverted_cdf"
    )
    assert found.low.item() == pytest.approx(low, rel=RELATIVE_ERROR)
    assert found.high.item() == pytest.approx(high, rel=RELATIVE_ERROR)


def test_all_percent_are_the_extremes():
    x = tailed()
    found = read(spec_of("int8:tensor:static:p100"), [x]).result()
    assert found.high.item() == pytest.approx(x.max().item(), rel=RELATIVE_ERROR)
    assert found.high <= x.max() and found.low >= x.min()


def test_counted_tokenwise_quantiles_are_within_one_percent():
    parts = [tailed(seed=i) for i in range(4)]
    x = torch.cat(parts)
    found = read(spec_of("int8:tensor:static:tokenwise0.95"), parts).result()
    high = np.quantile(x.amax(1).numpy(), 0.95, method="inverted_cdf")
    low = -np.quantile(-x.amin(1).numpy(), 0.95, method="inverted_cdf")
    assert found.high.item() == pytest.approx(high, rel=RELATIVE_ERROR)
    assert found.low.item() == pytest.approx(low, rel=RELATIVE_ERROR)


@pytest.mark.parametrize(
    "text",
    [
        "int4:tensor:static:mse",
        "int8:tensor:static:mse",
        "int4:asym:tensor:static:mse",
        "fp8_e5m2:tensor:static:mse",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_range_of_least_error_costs_at_most_two_percent_more_than_the_best(text, seed):
    spec = spec_of(text)
    parts = [tailed(seed=10 * seed + i) for i in range(8)]
    x = torch.cat(parts)
    found = read(spec, parts).result()

    def error(low, high):
        return float((fake_quantize(x, spec, find_grid(low, high, spec)) - x).double().square().sum())

    low, high = x.min().reshape(1, 1), x.max().reshape(1, 1)
    best = min(error(low * f, high * f) for f in SHRINK)
    assert error(found.low, found.high) <= 1.02 * best
    assert found.high <= high


def test_a_signed_sketch_finds_the_same_rank_as_a_sort():
    x = torch.tensor([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0])
    sketch = SignedSketch()
    sketch.add(x)
    for rank, value in enumerate(x.tolist(), start=1):
        assert sketch.result(rank / len(x)) == pytest.approx(value, rel=RELATIVE_ERROR)
        assert sketch.result((rank - 0.5) / len(x)) == pytest.approx(value, rel=RELATIVE_ERROR)
    assert sketch.result(0.0) == pytest.approx(-4, rel=RELATIVE_ERROR)


def test_the_points_of_a_sketch_lie_in_their_buckets_and_weigh_what_was_counted():
    x = torch.tensor([-3.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    sketch = SignedSketch()
    sketch.add(x)
    points = sketch.points(8)
    assert float(points.weights.sum()) == 6
    for value, count in ((-3, 1), (0, 2), (1, 3)):
        near = (points.values - value).abs() <= abs(value) / 64
        assert float(points.weights[near].sum()) == count


@pytest.mark.parametrize("text", STATIC)
def test_nan_in_calibration_makes_the_range_nan_in_either_order(text):
    spec = spec_of(text)
    bad = tailed()
    bad[2, 5] = torch.nan
    for parts in ([bad, tailed()], [tailed(), bad]):
        found = read(spec, parts).result()
        assert torch.isnan(found.high).any() and torch.isnan(found.low).any()
        merged = read(spec, parts[:1])
        merged.merge(read(spec, parts[1:]))
        assert torch.isnan(merged.result().high).any()


def test_an_infinity_makes_extremes_infinite_and_counted_ranges_nan():
    bad = tailed()
    bad[0, 0] = torch.inf
    assert read(spec_of("int8:tensor:static"), [bad]).result().high == torch.inf
    assert torch.isnan(read(spec_of("int8:tensor:static:p99"), [bad]).result().high)


@pytest.mark.parametrize("text", STATIC)
def test_no_value_is_no_range(text):
    found = range_of(spec_of(text))
    found.update(torch.empty(0, 12))
    with pytest.raises(EmptyBatch, match="no value was read, so there is no range"):
        found.result()
    found.merge(read(spec_of(text), [torch.ones(2, 12)]))
    assert found.result().high.max() == 1


def test_zeros_are_a_range_of_zero():
    for text in STATIC:
        found = read(spec_of(text), [torch.zeros(3, 4)]).result()
        assert not found.low.any() and not found.high.any()
        grid = find_grid(*found, spec_of(text))
        assert torch.equal(fake_quantize(torch.zeros(3, 4), spec_of(text), grid), torch.zeros(3, 4))


def test_ranges_of_different_specs_or_widths_are_not_merged():
    a = read(spec_of("int8:tensor:static"), [torch.ones(2, 4)])
    with pytest.raises(
        MergeMismatch, match="only with the same spec; here they have int8:sym:tensor:static and int4"
    ):
        a.merge(read(spec_of("int4:tensor:static"), [torch.ones(2, 4)]))
    a = read(spec_of("int8:column:static"), [torch.ones(2, 4)])
    with pytest.raises(MergeMismatch, match="ranges of 4 and of 5 columns"):
        a.merge(read(spec_of("int8:column:static"), [torch.ones(2, 5)]))


def test_what_calibration_cannot_know_is_refused():
    with pytest.raises(UnknownOption, match="a static range is per 'tensor' or 'column', not per token"):
        range_of(spec_of("int8:token"))
    with pytest.raises(UnknownOption, match="a static range per column takes observer 'minmax', not 'mse'"):
        range_of(spec_of("int8:column:mse"))


def test_a_static_grid_of_the_tensor_at_hand_is_its_dynamic_grid():
    x = tailed()
    static, dynamic = spec_of("int8:asym:tensor:static"), spec_of("int8:asym:tensor")
    grid = find_grid(*read(static, [x]).result(), static)
    assert isinstance(grid, Grid)
    assert torch.equal(fake_quantize(x, static, grid), fake_quantize(x, dynamic))
