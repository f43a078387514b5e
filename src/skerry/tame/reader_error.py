"""What rounding costs the readers of one seam, as a function of the change of the seam: the loss that searches minimise.

    loss(z, s) = mean over tokens and outputs of (Q_a((x - z) / s) Q_w(W s)^T + (b + W z) - (x W^T + b))^2

over all readers, each on the drawn tokens that it reads, with grids as the scheme has them: static ranges are those of all tokens, changed
by the same z and s. Readers that the scheme leaves alone (routers) cost nothing. Limit: without rounding every change costs 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.dense import Dense
from skerry.anatomy.seams import Seam
from skerry.impact.observers import range_of
from skerry.impact.quantize import Grid, fake_quantize, find_grid
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.tame.reading import ChannelRange, Reading

# Rows of a weight that are in float64 at once.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Part:
    dense: Dense
    rows: Float[Tensor, "row channel"]
    range: ChannelRange
    wanted: Float[Tensor, "row output"]


class ReaderError:
    """The loss of one seam.

    Args:
        seam: The seam.
        readings: By name of the map, with rows.
        scheme: How readers are quantized.
        quantized: Names of the maps that the scheme quantizes.
        float_inputs: Leave the inputs in full precision, whatever the scheme says.
    """

    def __init__(
        self,
        seam: Seam,
        readings: dict[str, Reading],
        scheme: Scheme,
        quantized: frozenset[str],
        *,
        float_inputs: bool = False,
    ) -> None:
        self.seam, self.scheme = seam, scheme
        self.inputs = None if float_inputs else scheme.inputs
        self._parts: list[_Part] = []
        known: dict[int, Tensor] = {}
        for dense in seam.readers:
            reading = readings[dense.name]
            # Readers of one tensor share its rows, and so their rounding.
            rows = known.setdefault(id(reading), reading.rows)
            if dense.name in quantized and reading.range is not None and len(rows):
                wanted = rows @ dense.weight.to(rows).T
                self._parts.append(_Part(dense, rows, reading.range, wanted))

    @property
    def num_values(self) -> int:
        """Output values compared; 0 where no drawn token reaches a reader."""
        return sum(part.wanted.numel() for part in self._parts)

    @property
    def power(self) -> float:
        """Mean square of the outputs in full precision."""
        return sum(float(p.wanted.square().sum(dtype=torch.float64)) for p in self._parts) / max(
            1, self.num_values
        )

    @torch.no_grad()
    def __call__(
        self, *, shift: Float[Tensor, "free"] | None = None, scale: Float[Tensor, "free"] | None = None
    ) -> float:
        """The loss of a change; of the seam as it is without one."""
        if not self._parts:
            return 0.0
        spread = self.seam.spread
        shift, scale = (None if x is None else x[spread.to(x.device)] for x in (shift, scale))
        done: dict[int, Tensor] = {}
        total = 0.0
        for part in self._parts:
            key = id(part.rows)
            if key not in done:
                done.clear()
                done[key] = self._round_rows(part, shift, scale)
            # In place of b + W z the shift is added to the outputs wanted: only W s is rounded.
            made = done[key] @ self._round_weight(part.dense, scale).to(part.rows).T
            wanted = part.wanted
            if shift is not None:
                wanted = wanted - (part.dense.weight.double() @ shift.double()).to(wanted)
            total += float((made - wanted).square_().sum(dtype=torch.float64))
        return total / self.num_values

    def _round_rows(self, part: _Part, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        rows = part.rows
        rows = rows if shift is None else rows - shift.to(rows)
        rows = rows if scale is None else rows / scale.to(rows)
        if self.inputs is None:
            return rows
        return fake_quantize(
            rows, self.inputs, static_grid(rows, part.range.changed(shift=shift, scale=scale), self.inputs)
        )

    def _round_weight(self, dense: Dense, scale: Tensor | None) -> Tensor:
        weight = scaled_weight(dense, scale)
        return weight if self.scheme.weights is None else fake_quantize(weight, self.scheme.weights)


def scaled_weight(dense: Dense, scale: Float[Tensor, "column"] | None) -> Float[Tensor, "row column"]:
    """W * s as a fold stores it, bit for bit: the largest |w| of a slice lies half-way between two levels, so a last bit decides."""
    weight = dense.weight
    if scale is None:
        return weight.contiguous()
    wide = scale.to(weight.device).double()
    parts = [(part.double() * wide).to(weight.dtype) for part in weight.split(_ROWS_AT_ONCE)]
    return torch.cat(parts).contiguous()


def static_grid(rows: Float[Tensor, "row channel"], of: ChannelRange, spec: TensorSpec) -> Grid | None:
    """The grid that a static scheme would have; None where the range is of the tensor at hand.

    Args:
        rows: A sample, for observers that look at more than the extremes.
        of: The range of every channel over all tokens.
        spec: Of the inputs.
    """
    if spec.dynamic:
        return None
    if spec.observer == "minmax":
        low, high = of.low.to(rows)[None], of.high.to(rows)[None]
        if spec.granularity == "tensor":
            low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
        return find_grid(low, high, spec)
    found = range_of(spec)
    found.update(rows)
    ends = found.result()
    return find_grid(ends.low.to(rows), ends.high.to(rows), spec)
