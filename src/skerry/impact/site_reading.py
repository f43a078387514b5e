"""What rounding does to one place: range, levels that are used, signal to noise, tokens that stand out.

snr = 10 log10(sum x^2 / sum (x - Q(x))^2)    decibels; over all values that are rounded
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from skerry.anatomy.dense import Dense
from skerry.anatomy.model import Anatomy
from skerry.impact.calibrate import counted_rows
from skerry.impact.quantize import count_levels
from skerry.impact.rows import RowEdit, Rows, change_rows
from skerry.impact.scheme import TensorSpec
from skerry.impact.simulate import Simulation

CENTRAL = 0.99
# Rows in which the levels are counted: sorting all of them would cost more than the forward.
ROWS_COUNTED = 512


class Reading:
    """Numbers of one place under one scheme, gathered as tensors and their rounded forms are shown.

    Args:
        spec: How the place is quantized.
        above: Size of a row above which it is an outlier token; None where rows are no tokens.
    """

    def __init__(self, spec: TensorSpec, above: dict[str, float] | None = None) -> None:
        self.spec, self.above = spec, above or {}
        self.low, self.high = math.inf, -math.inf
        self.signal = self.noise = 0.0
        self.num_tokens = 0
        self._levels: list[tuple[float, int]] = []
        self._rows: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, name: str, before: Tensor, after: Tensor) -> None:
        """Take in values [row column] of a map, as they were and rounded; rows that do not count left out."""
        if not before.numel():
            return
        self.low, self.high = min(self.low, float(before.min())), max(self.high, float(before.max()))
        self.signal += float(before.double().square().sum())
        self.noise += float((before.double() - after.double()).square().sum())
        if name in self.above:
            self.num_tokens += int((before.abs().amax(-1) > self.above[name]).sum())
        kept = self._rows.setdefault(name, [])
        if (missing := ROWS_COUNTED - sum(map(len, kept))) > 0:
            kept.append(before[:: max(1, len(before) // missing)][:missing])

    def numbers(self) -> dict[str, Any]:
        """Columns of `quantization_sites`."""
        counted = [count_levels(torch.cat(rows), self.spec, CENTRAL) for rows in self._rows.values()]
        share = sum(c.used / c.total for c in counted) / len(counted) if counted else None
        return {
            "low": self.low if counted else None,
            "high": self.high if counted else None,
            "central_levels": share,
            "num_levels": counted[0].total if counted else None,
            "snr_db": 10 * math.log10(self.signal / self.noise) if self.signal and self.noise else None,
        }


def read_weights(maps: list[tuple[Dense, Tensor, Tensor]], spec: TensorSpec) -> Reading:
    """The reading of weights: map, rows as they are, rows rounded."""
    reading = Reading(spec)
    for dense, before, after in maps:
        reading.add(dense.name, before.contiguous(), after.contiguous())
    return reading


@contextmanager
def read_inputs(
    anatomy: Anatomy, simulation: Simulation, maps: list[Dense], reading: Reading
) -> Iterator[None]:
    """Open the simulation, and read what it makes of the inputs of maps while it is open."""
    before: dict[str, Tensor] = {}

    def old(dense: Dense) -> RowEdit:
        def see(x: Tensor, places: Rows | None) -> Tensor:
            before[dense.name] = counted_rows(x, places)
            return x

        return see

    def new(dense: Dense) -> RowEdit:
        def see(x: Tensor, places: Rows | None) -> Tensor:
            if (was := before.pop(dense.name, None)) is not None:
                reading.add(dense.name, was, counted_rows(x, places))
            return x

        return see

    with ExitStack() as stack:
        # Hooks run in the order in which they were opened.
        stack.enter_context(change_rows(anatomy, {d: old(d) for d in maps}))
        stack.enter_context(simulation.open(anatomy))
        stack.enter_context(change_rows(anatomy, {d: new(d) for d in maps}))
        yield
