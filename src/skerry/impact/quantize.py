"""Quantization of one tensor [row column], simulated: x -> the nearest value of a grid, in the dtype of x.

    integers    q = clip(round(x / scale + zero_point), -2^(b-1), 2^(b-1) - 1),   x' = (q - zero_point) * scale
    symmetric   scale = max|x| / ((2^b - 1) / 2), zero_point = 0
    asymmetric  scale = (high - low) / (2^b - 1), zero_point = round(-2^(b-1) - low / scale); the range always includes 0
    floats      x' = nearest(x / scale) * scale,  scale = max|x| / largest value of the format

These are the conventions, and the operations in their order, of compressed-tensors 0.20: a checkpoint read there gives the same numbers
bit for bit. Rounding is half to even. Everything is computed in the dtype of x (of the grid where that is wider): a bfloat16 tensor has a
bfloat16 scale, as the checkpoint of a bfloat16 model has.

Limits: a range that is 0 gets a scale of the dtype's epsilon, so zeros stay zeros; a single value per slice is kept to one rounding error.
NaN makes its whole slice NaN under a range at hand, and stays alone under a given grid. An infinity gives a range at hand an infinite
scale, and its slice becomes NaN; under a given grid it is clipped. A tensor without values stays as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.impact.numbers import fp4_codes, fp4_values, mx_scale, nv_scales, round_, values_of
from skerry.impact.scheme import TensorSpec, check_group

# Elements of a tensor that are worked on at once: 256 KiB of float32 stay in the cache over all operations.
CHUNK = 1 << 16


class Grid(NamedTuple):
    """The levels of a slice, for integers scale * (q - zero_point); broadcast against x [row column] or [row group column]."""

    scale: Tensor
    zero_point: Tensor
    """Integers in the dtype of the scale."""


@torch.no_grad()
def find_grid(low: Tensor, high: Tensor, spec: TensorSpec) -> Grid:
    """The grid that covers [low, high].

    Args:
        low: Smallest values, in any shape.
        high: Largest values, in the same shape.
        spec: Number format and symmetry.

    Returns:
        In the shape and dtype of the range.
    """
    number = spec.format
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if spec.symmetric:
        largest = torch.maximum(-low, high)
        if number.name == "nvfp4":
            scales = nv_scales(largest) if largest.numel() else None
            scale = largest.float() if scales is None else scales.block / scales.tensor
        elif number.block:
            scale = mx_scale(largest, number)
        else:
            scale = largest / number.half_range
        scale = _nonzero(scale)
        return Grid(scale, torch.zeros_like(scale))
    scale = _nonzero((high - low) / (number.largest - number.smallest))
    zero_point = (number.smallest - low / scale).clamp_(number.smallest, number.largest).round_()
    return Grid(scale, zero_point)


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def by_group(x: Float[Tensor, "row column"], spec: TensorSpec) -> Tensor:
    """As the grid broadcasts against it: [row group column] where the spec has groups, x itself otherwise."""
    if not spec.group_size:
        return x
    check_group(x.shape[1], spec, "a tensor")
    return x.unflatten(1, (x.shape[1] // spec.group_size, spec.group_size))


def min_max(x: Tensor, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every slice of `by_group(x)`, in the shape of a grid."""
    dims = {"tensor": (0, 1), "column": (0,)}.get(spec.granularity, (-1,))
    return x.amin(dim=dims, keepdim=True), x.amax(dim=dims, keepdim=True)


@torch.no_grad()
def observe(x: Float[Tensor, "row column"], spec: TensorSpec) -> Grid:
    """The grid of the tensor at hand, with the range that the spec's observer chooses.

    Raises:
        UnknownOption: The group size does not divide the columns.
    """
    pieces = by_group(x, spec)
    if spec.observer == "minmax" or not x.numel():
        low, high = _empty_range(pieces, spec) if not x.numel() else min_max(pieces, spec)
        return find_grid(low, high, spec)
    # The search rounds with this file, which is why it is not imported by it.
    from skerry.impact.observers import find_range

    return find_grid(*find_range(pieces, spec), spec)


def _empty_range(x: Tensor, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    shape = {"tensor": (1, 1), "column": (1, x.shape[-1])}.get(spec.granularity, (*x.shape[:-1], 1))
    zeros = x.new_zeros(shape)
    return zeros, zeros


@torch.no_grad()
def fake_quantize(x: Float[Tensor, "row column"], spec: TensorSpec, grid: Grid | None = None) -> Tensor:
    """The nearest value of the grid to every value of x.

    Args:
        x: A weight [out in] or the rows of an activation; is not changed.
        spec: How it is quantized.
        grid: The levels; those that `observe(x, spec)` finds by default.

    Returns:
        A new tensor [row column] of the same dtype.

    Raises:
        UnknownOption: The group size does not divide the columns.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    pieces, into = by_group(x, spec), by_group(out, spec)
    # Rows that have grids of their own find them while they are in the cache.
    alone = grid is None and spec.observer == "minmax" and spec.granularity in ("token", "channel", "group")
    alone = alone and spec.number != "nvfp4"
    if grid is None and not alone:
        grid = observe(x, spec)
    step = max(1, CHUNK // max(1, x.shape[1]))
    for i in range(0, len(x) if x.numel() else 0, step):
        part = pieces[i : i + step]
        part_grid = find_grid(*min_max(part, spec), spec) if grid is None else rows_of(grid, i, i + step)
        target = into[i : i + step]
        if x.dtype == part_grid.scale.dtype:
            round_trip(part, spec, part_grid, out=target)
        else:
            target.copy_(round_trip(part, spec, part_grid))
    return out


def rows_of(grid: Grid, start: int, stop: int) -> Grid:
    """The grid of some rows."""
    return Grid(*(t if t.shape[0] == 1 else t[start:stop] for t in grid))


def round_trip(x: Tensor, spec: TensorSpec, grid: Grid, *, out: Tensor | None = None) -> Tensor:
    """To levels and back, of what the grid broadcasts against.

    Args:
        x: In the layout of `by_group`.
        spec: How it is quantized.
        grid: The levels.
        out: Tensor of the same shape that takes the result and all steps before it; a new one by default. Its dtype is that of x and scale.
    """
    q = _levels(x, spec, grid, out=out).to(grid.scale.dtype)
    if not spec.symmetric:
        q.sub_(grid.zero_point)
    return q.mul_(grid.scale)


def _levels(x: Tensor, spec: TensorSpec, grid: Grid, *, out: Tensor | None = None) -> Tensor:
    """The level of every value, as floats."""
    q = torch.div(x, grid.scale, out=out)
    if not spec.symmetric:
        q.add_(grid.zero_point)
    return round_(q, spec.format)


@torch.no_grad()
def to_levels(x: Float[Tensor, "row column"], spec: TensorSpec, grid: Grid) -> Tensor:
    """The level of every value, as it is stored.

    Args:
        x: A weight or the rows of an activation.
        spec: How it is quantized.
        grid: The levels.

    Returns:
        [row column]: int8 for integers of any width, float8 for fp8, uint8 with the code of one value for 4-bit floats.

    Raises:
        ValueError: NaN has no level.
    """
    levels = _levels(by_group(x, spec), spec, grid).reshape(x.shape)
    if bool(torch.isnan(levels).any()):
        raise ValueError(
            f"{int(torch.isnan(levels).sum())} values are NaN or have a grid that is: NaN has no level in {spec.number}"
        )
    if spec.format.is_integer:
        return levels.to(torch.int8)
    return levels.to(_FLOAT8[spec.number]) if spec.number in _FLOAT8 else fp4_codes(levels)


@torch.no_grad()
def from_levels(levels: Tensor, spec: TensorSpec, grid: Grid) -> Tensor:
    """The values of stored levels, (q - zero_point) * scale, in the dtype of the scale; inverse of `to_levels` on the grid."""
    dtype = grid.scale.dtype
    q = (
        fp4_values(levels, dtype)
        if spec.format.bits == 4 and not spec.format.is_integer
        else levels.to(dtype)
    )
    pieces = by_group(q, spec)
    if not spec.symmetric:
        pieces = pieces - grid.zero_point
    return (pieces * grid.scale).reshape(levels.shape)


_FLOAT8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


class Levels(NamedTuple):
    """Levels of a grid that the bulk of a tensor uses."""

    used: float
    """Number of levels, mean over the slices that have a grid of their own."""
    total: int
    """Number of levels of the format."""


@torch.no_grad()
def count_levels(x: Float[Tensor, "row column"], spec: TensorSpec, share: float = 0.99) -> Levels:
    """How many levels the values between the (1 - share)/2 and (1 + share)/2 quantiles of their slice fall on.

    Args:
        x: A weight or the rows of an activation.
        spec: How it is quantized; the grid is that of the tensor at hand.
        share: The central part of the values that is looked at.

    Returns:
        Levels that hold at least one value; a level without values between two others does not count.
    """
    from skerry.impact.observers import central_range, slices_of

    total = len(values_of(spec.format))
    if not x.numel():
        return Levels(0.0, total)
    pieces = by_group(x, spec)
    levels = slices_of(_levels(pieces, spec, observe(x, spec)), spec)
    values = slices_of(pieces, spec)
    low, high = central_range(values, share)
    inside = (values >= low[:, None]) & (values <= high[:, None])
    ordered = torch.where(inside, levels, torch.inf).sort(dim=1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]) & torch.isfinite(ordered[:, 1:])
    used = changes.sum(1) + torch.isfinite(ordered[:, 0])
    return Levels(float(used.double().mean()), total)


def levels_used(x: Float[Tensor, "row column"], spec: TensorSpec, share: float = 0.99) -> float:
    """The share of a grid's levels that the central `share` of the values get to use; `count_levels` gives their number.

    With one outlier in a tensor most levels lie between it and the others: values in [-2, 2] beside a 100 use 7 of 256 levels of a
    symmetric grid, 2.7 %.
    """
    levels = count_levels(x, spec, share)
    return levels.used / levels.total
