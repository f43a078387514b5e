"""A linear map as it will be once its seams are changed and it is rounded, in the coordinates of the model as it is.

    y = Q_a((x - z) / s) (r Q_w(W s / r))^T + b + W z

z and s are the change of the seam that it reads, r that of the seam that it writes. In these coordinates nothing needs to be folded to see
what a change would cost: x and y mean what they mean in the model. Limit: without rounding, y = x W^T + b.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skerry.anatomy.blocks import instead
from skerry.anatomy.dense import Dense, change_inputs, replace_weights
from skerry.anatomy.model import Anatomy
from skerry.anatomy.seams import Seam
from skerry.anatomy.watch import rows_of
from skerry.impact.quantize import Grid, fake_quantize, find_grid
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.impact.simulate import round_rows
from skerry.tame.threshold import Ranges
from skerry.tame.transform import SeamChange


@dataclass(frozen=True, eq=False)
class Reading:
    """How the readers of a seam see its tensor.

    Attributes:
        shift: z of every channel; None for none.
        scale: s of every channel; None for none.
        spec: How inputs are rounded; None: they are not.
        grid: Static levels of (x - z) / s; None for the range at hand.
    """

    shift: Float[Tensor, "channel"] | None
    scale: Float[Tensor, "channel"] | None
    spec: TensorSpec | None
    grid: Grid | None = None

    def __call__(
        self, x: Float[Tensor, "row channel"], counts: Bool[Tensor, "row"] | None = None
    ) -> Float[Tensor, "row channel"]:
        """What the readers read: Q((x - z) / s).

        Args:
            x: The tensor as the model has it.
            counts: False at padding, which stretches no range.
        """
        x = x if self.shift is None else x - self.shift
        x = x if self.scale is None else x / self.scale
        return x if self.spec is None else round_rows(x, self.spec, self.grid, counts=counts)


def reading_of(
    seam: Seam | None, change: SeamChange | None, scheme: Scheme, ranges: Ranges, dtype: torch.dtype
) -> Reading:
    """How a seam's tensor is read after a change; a map that reads no seam has none of both.

    Args:
        seam: The seam.
        change: What is done to it.
        scheme: Says how inputs are rounded.
        ranges: Of every channel, as the model has it: a static grid covers them.
        dtype: To compute in.
    """
    shift, scale = (
        None if change is None or seam is None or x is None else x[seam.spread.to(x.device)]
        for x in (getattr(change, "shift", None), getattr(change, "scale", None))
    )
    spec, grid = scheme.inputs, None
    if spec is not None and not spec.dynamic:
        # Other observers than the range need the values; the range is what the search compares with, as the published one does.
        low, high = ranges.less(shift).over(scale)
        low, high = low.to(dtype)[None], high.to(dtype)[None]
        if spec.granularity == "tensor":
            low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
        grid = find_grid(low, high, spec)
    return Reading(
        None if shift is None else shift.to(dtype), None if scale is None else scale.to(dtype), spec, grid
    )


@dataclass(frozen=True, eq=False)
class Rounded:
    """One rounded map.

    Attributes:
        dense: The map.
        reading: How it reads.
        weight: Its weight [out in] for what it reads.
        bias: b + W z; None where that is 0.
    """

    dense: Dense
    reading: Reading
    weight: Float[Tensor, "row column"]
    bias: Float[Tensor, "row"] | None

    def __call__(self, read: Float[Tensor, "row column"]) -> Float[Tensor, "row out"]:
        """What it gives for what it reads, see `Reading`."""
        return nn.functional.linear(read, self.weight, self.bias)


def computing_dtype(dense: Dense) -> torch.dtype:
    """The dtype that losses are computed in: of the weights, float32 at least."""
    return torch.promote_types(dense.parameter.dtype, torch.float32)


@torch.no_grad()
def rounded(
    dense: Dense, scheme: Scheme, reading: Reading, *, rows: Float[Tensor, "row"] | None = None
) -> Rounded:
    """A map as it will be.

    Args:
        dense: The map.
        scheme: Says how weights are rounded.
        reading: How it reads its seam.
        rows: Scale of the seam that it writes, by row; None for none.
    """
    dtype = computing_dtype(dense)
    old = dense.weight.to(dtype)
    bias = None if dense.bias is None else dense.bias.to(dtype)
    if reading.shift is not None:
        moved = old @ reading.shift
        bias = moved if bias is None else bias + moved
    new = old if reading.scale is None else old * reading.scale
    new = new if rows is None else new / rows[:, None].to(dtype)
    if scheme.weights is not None:
        new = fake_quantize(new.contiguous(), scheme.weights)
    return Rounded(dense, reading, new if rows is None else new * rows[:, None].to(dtype), bias)


@contextmanager
def rounded_block(anatomy: Anatomy, maps: Mapping[Dense, Rounded]) -> Iterator[None]:
    """These maps are rounded while open; the stored weights are afterwards as before, bit for bit."""
    shared: dict[int, tuple[Any, Tensor]] = {}

    def read(r: Rounded, x: Tensor) -> Tensor:
        # Maps of one seam read one tensor: it is rounded once.
        key = id(r.reading)
        last = shared.get(key)
        if last is None or last[0] is not x:
            shared[key] = last = (x, r.reading(rows_of(x).to(r.weight.dtype)))
        return last[1]

    def forward(r: Rounded) -> Any:
        def give(x: Tensor, *_: Any, **__: Any) -> Tensor:
            y = r(read(r, x))
            return y.reshape(*x.shape[:-1], y.shape[-1]).to(x.dtype)

        return give

    with ExitStack() as stack:
        edits: dict[Dense, Any] = {}
        weights: dict[Dense, Tensor] = {}
        for dense, r in maps.items():
            if dense.is_routed:
                edits[dense], weights[dense] = _expert(r)
            else:
                stack.enter_context(instead(dense.module, forward(r)))
        stack.enter_context(change_inputs(anatomy, edits))
        stack.enter_context(replace_weights(weights))
        yield


def _expert(r: Rounded) -> tuple[Any, Tensor]:
    """Experts have no forward of their own: their input and weight are given in the old coordinates. Their seams carry no shift."""
    scale = r.reading.scale

    def edit(x: Tensor) -> Tensor:
        new = r.reading(x.to(r.weight.dtype))
        return new if scale is None else new * scale

    return edit, r.weight if scale is None else r.weight / scale
