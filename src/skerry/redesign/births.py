"""Watches outliers being born: every N optimizer steps the scan's accumulators read a few rows of the training batch.

    births = Births(model)
    for step, batch in enumerate(batches, start=1):
        ...                                        # forward, backward, optimizer step
        if births.due(step):
            rows = births.measure(step, batch)     # plain dicts: append them to a file
    births.table()

The model is looked at and left as it was: mode, gradients, buffers and the random state are the same afterwards, so a training with a monitor
has the losses of one without, bit for bit. It is read in the precision of its parameters, or of the autocast that is open.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from skerry.anatomy import Anatomy, resolve
from skerry.anatomy.quiet import quiet
from skerry.anatomy.sites import parse_parts
from skerry.choices import Choice
from skerry.corpus import Batch
from skerry.errors import UnknownOption
from skerry.redesign.births_reading import PARTS, BirthsReading
from skerry.redesign.births_rows import TOP, Row, rows_of
from skerry.run.tables import from_rows

if TYPE_CHECKING:
    import pyarrow as pa

EVERY = Choice(
    25,
    why="about 1 % of the training time: of models of 0.1 to 5 million parameters a measurement takes 0.2 to 0.3 steps on one core, "
    "so that 3 % would be reached at every 11th step",
)
"""Measured by benchmarks/births.py."""
ROWS = 4
"""Inputs that are read: an eighth of a small batch, and enough for medians over 500 tokens."""


class Births:
    """A monitor of one model in training.

    Attributes:
        anatomy: The model with its places.
        every: Optimizer steps between two measurements, with the reason.
        rows: Inputs of the batch that are read.
        measured: All rows so far, in the order of their steps.
        seconds: Time that measuring has taken.
    """

    def __init__(
        self,
        model: nn.Module | Anatomy,
        *,
        every: int | None = None,
        rows: int = ROWS,
        parts: Iterable[str] = PARTS,
        top: int = TOP,
    ) -> None:
        """Find the places of the model.

        Args:
            model: The model as it is trained, not a compiled or distributed wrapper of it; or its anatomy.
            every: Optimizer steps between two measurements; chosen when None.
            rows: Inputs of the batch to read.
            parts: Activations to read, words of `skerry sites`; attention and down projections are always read.
            top: How many of the strongest channels to name.

        Raises:
            UnknownOption: A number below one.
            UnknownSite: A word that is no part.
            UnresolvedArchitecture: No list of blocks was found in the model.
        """
        for name, value in {"every": every, "rows": rows, "top": top}.items():
            if value is not None and value < 1:
                raise UnknownOption(f"{name} is {value}; a monitor needs at least 1")
        self.anatomy = model if isinstance(model, Anatomy) else resolve(model)
        self.every = EVERY if every is None else Choice(every, "asked for")
        self.rows, self.top = rows, top
        self.parts = tuple(parse_parts(parts))
        self.measured: list[Row] = []
        self.seconds = 0.0

    def due(self, step: int) -> bool:
        """Whether to measure after so many steps: every N, and before the first N at powers of two, where much is born.

        Args:
            step: Optimizer steps done; 0 is the initial model.
        """
        return step % self.every.value == 0 or (step < self.every.value and step & (step - 1) == 0)

    def measure(
        self,
        step: int,
        input_ids: Int[Tensor, "sample position"],
        keep: Bool[Tensor, "sample position"] | None = None,
    ) -> list[Row]:
        """Read the model as it is now.

        Args:
            step: Optimizer steps done.
            input_ids: The training batch; its first rows are read.
            keep: False at padding; None without any.

        Returns:
            One row per site, per layer's attention and per down projection; columns of the table `births`, but for `series`.

        Raises:
            EmptyBatch: The rows keep no token.
        """
        start = time.perf_counter()
        ids = input_ids[: self.rows].detach().cpu()
        kept = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep[: self.rows].cpu()
        batch = Batch(ids, kept, torch.arange(len(ids)))
        reading = BirthsReading(self.anatomy, self.parts)
        # Compiled code stays as it is: what runs here is the model without it.
        with quiet(self.anatomy.model), torch.compiler.set_stance("force_eager"):
            reading.read(batch)
        rows = rows_of(reading, step, top=self.top)
        self.measured += rows
        self.seconds += time.perf_counter() - start
        return rows

    def resume(self, rows: Sequence[Row], *, step: int) -> None:
        """Take in what an earlier process measured.

        Args:
            rows: Its rows.
            step: Where the training goes on; later rows are forgotten, for they will be measured again.
        """
        self.measured = [dict(row) for row in rows if row["step"] <= step]

    def table(self, series: str = "training") -> pa.Table:
        """Everything measured so far as the table `births` of a run.

        Args:
            series: Name of the training.
        """
        return births_table(self.measured, series)

    def __repr__(self) -> str:
        steps = {row["step"] for row in self.measured}
        return f"<Births of {type(self.anatomy.model).__name__}: {len(steps)} steps measured, every {self.every.value}; .due(step), .table()>"


def births_table(rows: Iterable[dict[str, Any]], series: str) -> pa.Table:
    """Rows of a monitor as the table `births`.

    Args:
        rows: As `Births.measure` returns them.
        series: Name of the training.
    """
    return from_rows("births", [{"series": series, **row} for row in rows])
