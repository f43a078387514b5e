"""Number formats: which values b bits can hold, and rounding to the nearest of them.

    int b        q in [-2^(b-1), 2^(b-1) - 1]
    float e, m   +-2^E (1 + k / 2^m), E >= E_min; below 2^E_min the same spacing goes on to 0; ties to the even k

    name         bits of a value   largest   block   scale of a block
    int2..int8   2..8              -         -       -
    fp8_e4m3     8                 448       -       -                (no infinity: OCP OFP8)
    fp8_e5m2     8                 57344     -       -
    mxfp4        4 (e2m1)          6         32      e8m0: 2^(floor(log2 amax) - 2)   (OCP MX 1.0, section 6.3)
    mxfp4_even   4 (e2m1)          6         32      e8m0: amax is first rounded to one bit of mantissa, half up; then as above
    nvfp4        4 (e2m1)          6         16      e4m3, times one float32 scale per tensor

`mxfp4` and `mxfp4_even` are one format on disk; they differ in how the scale is chosen. With floor the largest value of a block lies in [4, 8)
steps, so that what is above 6 is clipped; with even it lies in [3.5, 7). compressed-tensors chooses even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Number:
    """One number format.

    Attributes:
        name: As in a scheme.
        bits: Of one value, without scales.
        mantissa: Stored bits of mantissa; None for integers.
        min_exponent: Exponent of the smallest normal value.
        largest: Largest finite value; of integers 2^(b-1) - 1.
        block: Values that share a scale, where the format says so.
        scale_bits: Of the scale of a block.
    """

    name: str
    bits: int
    largest: float
    mantissa: int | None = None
    min_exponent: int = 0
    block: int | None = None
    scale_bits: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether the levels are equally spaced."""
        return self.mantissa is None

    @property
    def smallest(self) -> float:
        """Smallest (most negative) value."""
        return -self.largest - 1 if self.is_integer else -self.largest

    @property
    def half_range(self) -> float:
        """What the largest |x| of a symmetric grid is divided by: (2^b - 1) / 2, or the largest float."""
        return (2**self.bits - 1) / 2 if self.is_integer else self.largest


_INTEGERS = [Number(f"int{b}", b, 2.0 ** (b - 1) - 1) for b in range(2, 9)]
_FLOATS = [
    Number("fp8_e4m3", 8, 448.0, mantissa=3, min_exponent=-6),
    Number("fp8_e5m2", 8, 57344.0, mantissa=2, min_exponent=-14),
    Number("mxfp4", 4, 6.0, mantissa=1, min_exponent=0, block=32, scale_bits=8),
    Number("mxfp4_even", 4, 6.0, mantissa=1, min_exponent=0, block=32, scale_bits=8),
    Number("nvfp4", 4, 6.0, mantissa=1, min_exponent=0, block=16, scale_bits=8),
]
NUMBERS: dict[str, Number] = {n.name: n for n in (*_INTEGERS, *_FLOATS)}

# Sign and exponent of a float as an integer of the same width.
_EXPONENT_BITS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


def round_(x: Float[Tensor, "..."], number: Number) -> Float[Tensor, "..."]:
    """Clip x to the format and round to its nearest value, ties to even, in place; NaN stays NaN.

    Args:
        x: In units of the format: what was divided by the scale. float32 and float64 are changed in place.
        number: The format.
    """
    if number.mantissa is None:
        return x.clamp_(number.smallest, number.largest).round_()
    if x.dtype not in _EXPONENT_BITS:  # bfloat16, float16: float32 holds them and the result exactly
        return x.copy_(round_(x.float(), number))
    x.clamp_(number.smallest, number.largest)
    integer, mask = _EXPONENT_BITS[x.dtype]
    # 2^floor(log2 |x|), without a logarithm: the value with its sign and mantissa taken off.
    step = (x.view(integer) & mask).view(x.dtype)
    step.clamp_(min=2.0**number.min_exponent).mul_(2.0**-number.mantissa)
    return x.div_(step).round_().mul_(step)


def values_of(number: Number) -> Float[Tensor, "level"]:
    """All values of a format, ascending, in float64; 0 once."""
    if number.mantissa is None:
        return torch.arange(number.smallest, number.largest + 1, dtype=torch.float64)
    m = 2**number.mantissa
    below = torch.arange(m, dtype=torch.float64) / m * 2.0**number.min_exponent
    octaves = [
        (1 + torch.arange(m, dtype=torch.float64) / m) * 2.0**e for e in range(number.min_exponent, 17)
    ]
    positive = torch.cat([below, *octaves])
    positive = positive[positive <= number.largest]
    return torch.cat([-positive.flip(0)[:-1], positive])


def mx_scale(largest: Float[Tensor, "..."], number: Number) -> Float[Tensor, "..."]:
    """Power-of-two scale of blocks, 2^(floor(log2 amax) - 2) with the exponent kept in -127 .. 127 (e8m0).

    Args:
        largest: Largest |x| of every block.
        number: `mxfp4`, or `mxfp4_even`: there amax counts as the next power of two from 1.75 * 2^e on, since it would round past 6.

    Returns:
        NaN where the largest value is NaN; 2^-127 for a block of zeros.
    """
    wide = largest if largest.dtype == torch.float64 else largest.float()
    mantissa, exponent = torch.frexp(wide)  # mantissa in [0.5, 1)
    exponent = exponent - 1
    if number.name == "mxfp4_even":
        exponent = exponent + (mantissa >= 0.875)
    # A zero has exponent 0 in frexp; its block takes the smallest scale.
    exponent = torch.where(wide == 0, -127, exponent - 2).clamp(-127, 127)
    exponent = torch.where(torch.isinf(wide), 127, exponent)
    scale = torch.exp2(exponent.double())
    return torch.where(torch.isnan(wide), torch.nan, scale).to(largest.dtype)


class BlockScales(NamedTuple):
    """The two scales of nvfp4: x = value * block / tensor."""

    block: Tensor
    """Of every block, a value of fp8_e4m3 in float32."""
    tensor: Tensor
    """[1], float32: 448 * 6 / max|x|, so that the largest block scale is 448."""


def nv_scales(largest: Float[Tensor, "..."]) -> BlockScales:
    """Scales of nvfp4 blocks of one tensor, from the largest |x| of every block; a scale that rounds to 0 becomes 0.125."""
    fp8 = NUMBERS["fp8_e4m3"].largest
    fp4 = NUMBERS["nvfp4"].largest
    overall = largest.amax().clamp(min=torch.finfo(largest.dtype).tiny)
    # NaN, and what overflows, mean no scale for the tensor; NaN stays in the block's scale.
    tensor = torch.nan_to_num(fp8 * fp4 / overall, nan=1.0, posinf=1.0).float().reshape(1)
    block = (tensor * (largest / fp4)).clamp(max=fp8).to(torch.float8_e4m3fn).to(torch.float32)
    return BlockScales(torch.where(block == 0, 0.125, block), tensor)


_FP4_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def fp4_codes(x: Float[Tensor, "..."]) -> Tensor:
    """The four bits of e2m1 values as uint8: sign, two of exponent, one of mantissa."""
    table = torch.tensor(_FP4_POSITIVE, dtype=x.dtype, device=x.device)
    return torch.bucketize(x.abs(), table).to(torch.uint8) | (torch.signbit(x).to(torch.uint8) << 3)


def fp4_values(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of four-bit codes; inverse of `fp4_codes`."""
    table = torch.tensor([*_FP4_POSITIVE, *(-v for v in _FP4_POSITIVE)], dtype=dtype, device=codes.device)
    return table[codes.long()]
