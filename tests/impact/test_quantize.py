import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.errors import UnknownOption
from skerry.impact.numbers import NUMBERS, fp4_codes, fp4_values, mx_scale, nv_scales, round_, values_of
from skerry.impact.quantize import (
    Grid,
    count_levels,
    fake_quantize,
    find_grid,
    from_levels,
    levels_used,
    observe,
    to_levels,
)
from skerry.impact.scheme import TensorSpec

SPECS = [
    *(
        f"int{b}:{s}:{g}"
        for b, s, g in itertools.product(
            (2, 3, 4, 8), ("sym", "asym"), ("tensor", "token", "column", "group32")
        )
    ),
    *(
        f"{n}:{g}"
        for n, g in itertools.product(("fp8_e4m3", "fp8_e5m2"), ("tensor", "channel", "column", "group32"))
    ),
    *("mxfp4", "mxfp4_even", "nvfp4"),
]


def spec_of(text):
    return TensorSpec.parse(text)


def heavy(rows=33, columns=96, *, dtype=torch.float32, seed=0):
    """Values with a heavy tail, an offset, a column of zeros and one of a constant."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    x = x.sign() * x.abs() ** 3 + 0.3
    x[:, 3], x[:, 5] = 0.0, 1.7
    return x.to(dtype)


def naive(x, spec, scale, zero_point):
    """The nearest of all values of the grid, in float64, found by looking at each; a tie goes to neither in particular."""
    levels = values_of(spec.format)
    grid = (levels - zero_point.double()[..., None]) * scale.double()[..., None]
    distances = (x.double()[..., None] - grid).abs()
    return torch.gather(grid, -1, distances.argmin(-1, keepdim=True))[..., 0], distances.amin(-1)


def expanded(grid, x, spec):
    """Scale and zero point of every value."""
    if not spec.group_size:
        return (t.expand(x.shape) for t in grid)
    return (t.expand(*t.shape[:2], spec.group_size).reshape(x.shape) for t in grid)


@pytest.mark.parametrize("text", SPECS)
def test_every_value_goes_to_the_nearest_value_of_its_grid(text):
    spec = spec_of(text)
    x = heavy()
    grid = observe(x, spec)
    scale, zero_point = expanded(grid, x, spec)
    got = fake_quantize(x, spec, grid).double()
    _, least = naive(x, spec, scale, zero_point)
    # x / scale, + zero point, (q - zero point) * scale each round once in float32, numbers of |x| or, about a zero point, of 2^8 steps.
    slack = 4 * 2.0**-24 * (x.double().abs() + 2**8 * scale.double())
    assert ((x.double() - got).abs() <= least + slack).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", SPECS)
def test_the_dtype_stays_and_the_tensor_at_hand_is_not_changed(text, dtype):
    x = heavy(dtype=dtype)
    before = x.clone()
    got = fake_quantize(x, spec_of(text))
    assert got.dtype == dtype and got.shape == x.shape and torch.equal(x, before)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("text", SPECS)
def test_the_grid_at_hand_and_the_grid_given_are_one(text):
    spec = spec_of(text)
    x = heavy(300, 480)  # more than one chunk
    assert torch.equal(fake_quantize(x, spec), fake_quantize(x, spec, observe(x, spec)))


@pytest.mark.parametrize("text", SPECS)
def test_levels_there_and_back_are_the_fake_quantization(text):
    spec = spec_of(text)
    x = heavy()
    grid = observe(x, spec)
    levels = to_levels(x, spec, grid)
    kind = {"int": torch.int8, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
    expected = kind["int"] if spec.format.is_integer else kind.get(spec.number, torch.uint8)
    assert levels.dtype == expected and levels.shape == x.shape
    assert torch.equal(from_levels(levels, spec, grid), fake_quantize(x, spec, grid))


@pytest.mark.parametrize("text", [t for t in SPECS if not t.startswith("nvfp4")])
def test_quantizing_twice_on_one_grid_changes_nothing(text):
    spec = spec_of(text)
    x = heavy(dtype=torch.float64)
    grid = observe(x, spec)
    once = fake_quantize(x, spec, grid)
    assert torch.equal(fake_quantize(once, spec, grid), once)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero", [0, 3])
def test_integers_agree_with_torch_per_tensor(bits, zero):
    spec = TensorSpec(f"int{bits}", symmetric=zero == 0)
    x = heavy(64, 64)
    scale = x.abs().max() / 2 ** (bits - 1)
    zero = min(zero, 2 ** (bits - 1) - 1)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), zero, low, high)
    ours = fake_quantize(x, spec, Grid(scale.reshape(1, 1), torch.full((1, 1), float(zero))))
    # torch multiplies by 1 / scale, which can tip a value at the middle between two levels.
    middle = (x / scale).frac().abs().sub(0.5).abs() < 1e-4
    assert middle.float().mean() < 0.01
    assert torch.equal(ours[~middle], theirs[~middle])


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_agree_with_torch_per_channel(bits):
    spec = spec_of(f"int{bits}:asym:channel")
    x = heavy(64, 64)
    grid = observe(x, spec)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    theirs = torch.fake_quantize_per_channel_affine(
        x, grid.scale.flatten(), grid.zero_point.flatten().int(), 0, low, high
    )
    middle = (x / grid.scale).frac().abs().sub(0.5).abs() < 1e-4
    assert torch.equal(fake_quantize(x, spec)[~middle], theirs[~middle])


# compressed-tensors: an independent implementation, which readers of checkpoints use.


def their_args(spec, *, kind="token"):
    args = pytest.importorskip("compressed_tensors.quantization.quant_args")
    options = {}
    if spec.number.startswith("mxfp4"):
        options = {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8, "strategy": "group"}
    elif spec.number == "nvfp4":
        options = {
            "scale_dtype": torch.float8_e4m3fn,
            "zp_dtype": torch.float8_e4m3fn,
            "strategy": "tensor_group",
        }
    return args.QuantizationArgs(
        **{
            "num_bits": spec.format.bits,
            "type": "int" if spec.format.is_integer else "float",
            "symmetric": spec.symmetric,
            "strategy": "token" if spec.granularity == "token" else spec.granularity,
            "group_size": spec.group_size,
            "dynamic": spec.granularity == "token",
            **options,
        }
    )


def theirs(x, spec):
    """What compressed-tensors makes of x: its own ranges, scales, zero points and rounding."""
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = their_args(spec)
    pieces = x.unflatten(1, (-1, spec.group_size)) if spec.group_size else x
    if spec.granularity == "tensor":
        low, high = x.min().reshape(1), x.max().reshape(1)
    else:
        low, high = pieces.amin(-1), pieces.amax(-1)
        low, high = (low, high) if spec.group_size else (low[:, None], high[:, None])
    overall = generate_gparam(x.min(), x.max()) if spec.number == "nvfp4" else None
    scale, zero_point = calculate_qparams(low, high, args, global_scale=overall)
    return forward.fake_quantize(x, scale, zero_point, args, global_scale=overall), scale, zero_point


PEERS = [t for t in SPECS if "column" not in t and "e5m2" not in t and t != "mxfp4"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", PEERS)
def test_fake_quantization_agrees_with_compressed_tensors_bit_for_bit(text, dtype):
    spec = spec_of(text)
    for seed in range(5):
        x = heavy(dtype=dtype, seed=seed) * 10.0 ** (seed - 2)
        x[:2] *= 1e-3
        expected, scale, zero_point = theirs(x, spec)
        grid = observe(x, spec)
        assert torch.equal(fake_quantize(x, spec), expected.to(dtype))
        if spec.number != "nvfp4":
            assert torch.equal(grid.scale.flatten(), scale.flatten())
        assert torch.equal(grid.zero_point.flatten().float(), zero_point.flatten().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nvfp4_has_the_two_scales_of_compressed_tensors(dtype):
    x = heavy(dtype=dtype)
    _, scale, _ = theirs(x, spec_of("nvfp4"))
    from compressed_tensors.quantization.utils import generate_gparam

    ours = nv_scales(x.unflatten(1, (-1, 16)).abs().amax(-1))
    assert torch.equal(ours.tensor, generate_gparam(x.min(), x.max()))
    assert torch.equal(ours.block, scale.float())
    assert ours.block.max() == 448


def test_mxfp4_on_the_scales_of_compressed_tensors_agrees_bit_for_bit():
    """The two rules of the scale differ; on one scale the values must not."""
    x = heavy()
    expected, scale, _ = theirs(x, spec_of("mxfp4"))
    grid = Grid(scale[..., None], torch.zeros_like(scale)[..., None])
    assert torch.equal(fake_quantize(x, spec_of("mxfp4"), grid), expected)


def test_the_rules_of_the_mx_scale_differ_only_where_the_largest_value_would_round_past_six():
    largest = torch.linspace(1, 4, 3001, dtype=torch.float64)[:-1]
    floor, even = mx_scale(largest, NUMBERS["mxfp4"]), mx_scale(largest, NUMBERS["mxfp4_even"])
    assert torch.equal(floor, 2.0 ** (largest.log2().floor() - 2))
    past = largest / floor >= 7
    assert torch.equal(even, torch.where(past, 2 * floor, floor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mx_scales_are_exact_powers_of_two_over_the_whole_range(dtype):
    exponents = torch.arange(-120, 127)
    largest = (torch.exp2(exponents.double()) * 1.5).to(dtype)
    assert torch.equal(mx_scale(largest, NUMBERS["mxfp4"]).double(), torch.exp2((exponents - 2).double()))
    assert torch.equal(
        mx_scale(torch.exp2(exponents.double()).to(dtype), NUMBERS["mxfp4"]).double(),
        torch.exp2((exponents - 2).double()),
    )
    below = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)).reshape(1)
    assert mx_scale(below, NUMBERS["mxfp4"]).item() == 2.0**-3
    edges = mx_scale(torch.tensor([0.0, torch.nan], dtype=torch.float64), NUMBERS["mxfp4"])
    assert edges[0] == 2.0**-127 and torch.isnan(edges[1])


# Tables of the float formats, against their definition.


@pytest.mark.parametrize(
    ("name", "count", "smallest"),
    [("fp8_e4m3", 253, 2.0**-9), ("fp8_e5m2", 247, 2.0**-16), ("mxfp4", 15, 0.5)],
)
def test_a_float_format_has_all_its_values_and_no_others(name, count, smallest):
    values = values_of(NUMBERS[name])
    assert len(values) == count == len(values.unique())
    assert values[values > 0].min() == smallest
    assert values.max() == NUMBERS[name].largest and torch.equal(values, -values.flip(0))
    if name.startswith("fp8"):
        dtype = torch.float8_e4m3fn if name == "fp8_e4m3" else torch.float8_e5m2
        theirs = torch.arange(256, dtype=torch.uint8).view(dtype).double()
        assert torch.equal(theirs[torch.isfinite(theirs)].unique(), values)
    else:
        assert values[values >= 0].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "mxfp4", "int4"])
def test_rounding_finds_the_nearest_value_and_ties_go_to_the_even_one(name, dtype):
    number = NUMBERS[name]
    values = values_of(number)
    middles = (values[1:] + values[:-1]) / 2
    outside = torch.tensor([number.largest * 1.5, -number.largest * 1.5])
    x = torch.cat(
        [
            values,
            middles,
            torch.nextafter(middles, values[1:]),
            torch.nextafter(middles, values[:-1]),
            outside,
        ]
    )
    x = torch.cat(
        [x, torch.randn(4000, dtype=torch.float64) * torch.logspace(-6, 5, 4000, dtype=torch.float64)]
    ).to(dtype)
    got = round_(x.clone(), number).double()
    distances = (x.double()[:, None] - values).abs()
    assert torch.equal((got - x.double()).abs(), distances.amin(1))
    # At a tie two values are as near; the one with the even place among the values from 0 upwards is right (0 is place 0).
    ties = (distances == distances.amin(1, keepdim=True)).sum(1) == 2
    assert ties.any()
    places = torch.searchsorted(values, got[ties]) - int((values < 0).sum())
    assert (places % 2 == 0).all()


def test_rounding_float64_to_fp8_does_not_round_twice():
    # Just above the middle of 1 and 1.125: float32 would make it the middle, which goes down to the even 1.
    x = torch.tensor([1.0625 + 2.0**-40], dtype=torch.float64)
    assert x.float().to(torch.float8_e4m3fn).item() == 1.0
    assert round_(x.clone(), NUMBERS["fp8_e4m3"]).item() == 1.125


def test_four_bit_codes_are_sign_exponent_mantissa():
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    assert fp4_codes(values).tolist() == list(range(8))
    assert fp4_codes(-values).tolist() == list(range(8, 16))
    assert torch.equal(fp4_values(fp4_codes(-values), torch.float32), -values)


# Grids by hand.


def test_a_symmetric_grid_divides_by_half_its_range():
    grid = find_grid(torch.tensor([[-1.0]]), torch.tensor([[3.0]]), TensorSpec("int8"))
    assert grid.scale.item() == pytest.approx(3 / 127.5, rel=1e-7) and grid.zero_point.item() == 0


def test_an_asymmetric_grid_includes_zero_and_has_a_level_on_it():
    spec = TensorSpec("int4", symmetric=False)
    grid = find_grid(torch.tensor([[2.0]]), torch.tensor([[5.0]]), spec)
    assert grid.scale.item() == pytest.approx(5 / 15) and grid.zero_point.item() == -8
    grid = find_grid(torch.tensor([[-1.0]]), torch.tensor([[2.0]]), spec)
    assert grid.scale.item() == pytest.approx(0.2) and grid.zero_point.item() == -3
    assert fake_quantize(torch.zeros(1, 1), spec, grid).item() == 0


finite = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(
    st.lists(st.lists(finite, min_size=4, max_size=4), min_size=1, max_size=6),
    st.sampled_from(
        ["int8:token", "int3:asym:token", "int4:asym:tensor", "int4:sym:group2", "int5:asym:column"]
    ),
)
def test_no_value_moves_by_more_than_a_step(rows, text):
    spec = spec_of(text)
    x = torch.tensor(rows)
    grid = observe(x, spec)
    scale, _ = expanded(grid, x, spec)
    # Half a step by rounding; half more where the end of the range is cut (symmetric: 127.5 steps, the last level is 127) or the zero
    # point is rounded. The rest is the rounding of float32 numbers of up to 2^8 steps.
    bound = scale.double() * (1 + 2**8 * 4 * 2.0**-24)
    assert ((fake_quantize(x, spec) - x).double().abs() <= bound).all()


@settings(deadline=None)
@given(st.lists(finite, min_size=2, max_size=12), st.integers(-20, 20))
def test_a_power_of_two_in_front_comes_out_in_front(values, exponent):
    x = torch.tensor([values]) * (torch.tensor([values]).abs() > 1e-3)
    for text in ("int8:token", "int4:asym:tensor", "fp8_e4m3:token"):
        spec = spec_of(text)
        factor = 2.0**exponent
        assert torch.equal(fake_quantize(x * factor, spec), fake_quantize(x, spec) * factor)


# Limits.


@pytest.mark.parametrize("text", SPECS)
def test_zeros_stay_zeros(text):
    x = torch.zeros(5, 96)
    assert torch.equal(fake_quantize(x, spec_of(text)), x)


@pytest.mark.parametrize(
    "text", ["int8:token", "int8:asym:token", "int8:asym:tensor", "fp8_e4m3:tensor", "int8:column"]
)
@pytest.mark.parametrize("value", [3.7, -3.7, 1e-30, 1e30])
def test_a_single_value_is_kept_to_a_step(text, value):
    x = torch.tensor([[value]])
    spec = spec_of(text)
    # A symmetric integer grid ends half a step before the largest value; the others reach it.
    slack = abs(value) / 127.5 if spec.symmetric and spec.format.is_integer else abs(value) * 1e-6
    assert fake_quantize(x, spec).item() == pytest.approx(value, abs=slack, rel=0)


def test_a_constant_tensor_is_kept_by_an_asymmetric_grid():
    x = torch.full((7, 5), -2.5)
    for text in ("int4:asym:tensor", "int2:asym:token", "int8:asym:column"):
        torch.testing.assert_close(fake_quantize(x, spec_of(text)), x, rtol=1e-6, atol=0)


def test_a_single_column_has_one_grid_per_row():
    x = torch.tensor([[1.0], [-300.0]])
    assert observe(x, spec_of("int8:token")).scale.shape == (2, 1)
    torch.testing.assert_close(fake_quantize(x, spec_of("int8:asym:token")), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "text", ["int8:token", "int8:asym:token", "fp8_e4m3:token", "mxfp4", "mxfp4_even", "nvfp4"]
)
def test_nan_makes_its_slice_nan_and_no_other(text):
    x = heavy(4, 96)
    x[1, 7] = torch.nan
    spec = spec_of(text)
    got = fake_quantize(x, spec)
    size = spec.group_size or 96
    assert torch.isnan(got[1, :size]).all()
    got[1, :size] = 0
    assert torch.isfinite(got).all()


def test_nan_under_a_given_grid_stays_alone_and_infinity_is_clipped():
    x = torch.tensor([[1.0, torch.nan, torch.inf, -torch.inf]])
    for text, low, high in (("int8", -128, 127), ("fp8_e4m3", -448, 448), ("int4:asym", -8, 7)):
        got = fake_quantize(x, spec_of(text), Grid(torch.ones(1, 1), torch.zeros(1, 1)))
        assert got[0, 0] == 1 and torch.isnan(got[0, 1])
        assert got[0, 2:].tolist() == [high, low]


def test_an_infinity_makes_its_slice_nan_under_the_range_at_hand():
    x = heavy(3, 8)
    x[0, 2] = torch.inf
    got = fake_quantize(x, spec_of("int8:token"))
    assert torch.isnan(got[0]).any() and torch.isfinite(got[1:]).all()


def test_nan_has_no_level():
    x = torch.tensor([[1.0, torch.nan]])
    with pytest.raises(ValueError, match="1 values are NaN or have a grid that is: NaN has no level in int8"):
        to_levels(x, TensorSpec(), Grid(torch.ones(1, 1), torch.zeros(1, 1)))


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("shape", [(0, 96), (4, 0)])
def test_a_tensor_without_values_stays_as_it_is(text, shape):
    x = torch.empty(shape)
    spec = spec_of(text)
    assert fake_quantize(x, spec).shape == shape
    assert fake_quantize(x, spec, observe(x, spec)).shape == shape


@pytest.mark.parametrize("text", SPECS)
def test_a_view_gives_what_its_copy_gives(text):
    spec = spec_of(text)
    base = heavy(96, 64)
    assert torch.equal(fake_quantize(base.T, spec), fake_quantize(base.T.contiguous(), spec))
    assert torch.equal(
        fake_quantize(heavy(8, 192)[:, ::2], spec), fake_quantize(heavy(8, 192)[:, ::2].contiguous(), spec)
    )
    assert fake_quantize(base.T, spec).is_contiguous()


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(UnknownOption, match="reads 96 values, which groups of 64 do not divide"):
        fake_quantize(torch.ones(2, 96), spec_of("int4:group64"))


def test_gradients_are_not_recorded():
    assert not fake_quantize(torch.ones(2, 2, requires_grad=True), TensorSpec()).requires_grad


# Levels that an outlier leaves to the others.


def outlier_beside_the_rest():
    """The review's example: values in [-2, 2] and one of 100."""
    return torch.cat([torch.linspace(-2, 2, 10_000), torch.tensor([100.0])])[None]


def test_an_outlier_of_100_leaves_seven_of_256_levels_to_values_within_two():
    """The review says that int8 on [-100, 100] leaves 6 of 256 levels to [-2, 2].

    4 / (200 / 255) is 5.1 steps. A grid without a level on 0 (levels at +-0.39, +-1.18, +-1.96) has 6 there, which is the review's figure.
    A grid that can be used has a level on 0, and then 7 (0, +-0.78, +-1.57, +-2.35: from 1.96 on a value rounds to 2.35). An asymmetric one
    covers [-2, 100] only, with steps of 0.4: 11.
    """
    x = outlier_beside_the_rest()
    step = 200 / 255
    without_zero = np.unique(np.round(x[0, :-1].double().numpy() / step - 0.5))
    assert len(without_zero) == 6
    assert count_levels(x, TensorSpec("int8")) == (7, 256)
    assert levels_used(x, TensorSpec("int8")) == 7 / 256
    assert count_levels(x, TensorSpec("int8", symmetric=False)) == (11, 256)


def test_without_the_outlier_nearly_all_levels_are_used():
    x = torch.linspace(-2, 2, 10_000)[None]
    assert levels_used(x, TensorSpec("int8")) == pytest.approx(0.99, abs=0.01)
    assert levels_used(x, TensorSpec("int8"), share=0.5) == pytest.approx(0.5, abs=0.01)


def test_levels_without_values_do_not_count_and_slices_are_averaged():
    x = torch.tensor([[-1.0, 1.0] * 50, [0.0] * 100])
    assert count_levels(x, spec_of("int8:token"), share=1.0) == (1.5, 256)
    assert count_levels(torch.empty(0, 4), TensorSpec("int4")) == (0.0, 16)
    assert count_levels(torch.zeros(1, 64), spec_of("mxfp4")) == (1.0, 15)
