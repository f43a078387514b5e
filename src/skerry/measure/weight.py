"""One matrix: its rows, its columns, its largest entries, its median, in one reading.

A vector (a norm's gain) is a matrix of one row. Rows may come in chunks and in any order, and partial results add up; a chunk begins
at a multiple of ROW_TILE rows. The median is a sketch (1 %); in large matrices it reads one 16 x 16 tile in up to 64.
Any view with stride 1 along one axis is read in place; so a transposed matrix costs no copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.errors import MergeMismatch
from skerry.measure.accumulator import Columns, check_same, pack, prefixed, unpack
from skerry.measure.foremost import Foremost
from skerry.measure.moments import Moments
from skerry.measure.sketch import QuantileSketch
from skerry.measure.weight_fused import FusedReading, read_fused
from skerry.measure.weight_reading import LineReading, MatrixReading, read_plain

ROW_TILE = 1024
"""Chunks of rows begin at multiples of this; float32 sums inside the kernel then never depend on the chunks."""
NUM_NONFINITE_KEPT = 16


class WeightResult(NamedTuple):
    """What a matrix's accumulator says: columns under the names of the tables of a run, without layer, site and expert.

    Attributes:
        matrix: One row of `matrices`.
        lines: Columns of `lines`: all rows, then all columns.
        entries: Columns of `entries`.
        nonfinite: Columns of `nonfinite` without the sample: position is the row, channel the column; kind is "nan" or "inf".
    """

    matrix: Columns
    lines: Columns
    entries: Columns
    nonfinite: Columns


class Lines:
    """Statistics of all rows, or of all columns.

    Attributes:
        moments: Of every line.
        range: float64 [2, line], smallest and largest value.
        abs_sum: float64 [line], sum of |w|.
    """

    def __init__(self, num: int) -> None:
        self.moments = Moments.zeros(num)
        self.range = np.empty((2, num))
        self.range[0], self.range[1] = np.inf, -np.inf
        self.abs_sum = np.zeros(num)

    def add(self, reading: LineReading, at: slice) -> None:
        """Take in more of the lines `at`."""
        part = Moments(self.moments.count[at], self.moments.sums[:, at])
        part.merge(reading.moments)
        np.minimum(self.range[0, at], reading.low, out=self.range[0, at])
        np.maximum(self.range[1, at], reading.high, out=self.range[1, at])
        self.abs_sum[at] += reading.abs_sum

    def merge(self, other: Lines) -> None:
        """Take in what others have read of the same lines."""
        self.add(LineReading(other.moments, other.range[0], other.range[1], other.abs_sum), slice(None))

    def columns(self, axis: str) -> Columns:
        """Columns of the table `lines`."""
        m, some = self.moments, self.moments.count > 0
        return {
            "axis": np.full(len(some), axis),
            "index": np.arange(len(some)),
            "min": np.where(some, self.range[0], np.nan),
            "max": np.where(some, self.range[1], np.nan),
            "mean": m.mean,
            "mean_abs": self.abs_sum / np.where(some, m.count, np.nan),
            "std": np.sqrt(m.variance),
            "skewness": m.skewness,
            "kurtosis": m.kurtosis,
            "norm": np.sqrt(m.count * np.where(some, m.mean_square, 0.0)),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, by name."""
        m = self.moments
        return {"count": m.count, "sums": m.sums, "range": self.range, "abs_sum": self.abs_sum}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace everything by what `arrays` wrote."""
        self.moments = Moments(arrays["count"], arrays["sums"])
        self.range, self.abs_sum = arrays["range"], arrays["abs_sum"]


class WeightStats:
    """Mergeable statistics of one matrix."""

    def __init__(self, num_rows: int, num_columns: int, top_k: int = 64) -> None:
        """Start empty.

        Args:
            num_rows: Rows of the whole matrix.
            num_columns: Columns of the whole matrix.
            top_k: How many of the largest entries to keep with their coordinates.
        """
        self.rows, self.columns = Lines(num_rows), Lines(num_columns)
        self.counts = np.zeros(3, np.int64)  # zeros, NaN, infinite
        self.sketch = QuantileSketch()
        self.largest = Foremost(top_k, ("value", "row", "column"))
        self.nonfinite = Foremost(NUM_NONFINITE_KEPT, ("row", "column"), ("kind",))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole matrix."""
        return len(self.rows.abs_sum), len(self.columns.abs_sum)

    def update(self, w: Float[Tensor, "row column"], first_row: int = 0) -> None:
        """Read some rows; each row is read once.

        Args:
            w: All columns of some rows.
            first_row: Number of the first of them, a multiple of ROW_TILE.

        Raises:
            MergeMismatch: The rows do not fit into the matrix.
        """
        num_rows, num_columns = self.shape
        if w.shape[1] != num_columns or first_row + w.shape[0] > num_rows:
            raise MergeMismatch(
                f"rows {first_row} to {first_row + w.shape[0]} of width {w.shape[1]} do not fit a {num_rows} x {num_columns} matrix"
            )
        if first_row % ROW_TILE:
            raise MergeMismatch(f"a chunk of rows begins at a multiple of {ROW_TILE}, not at row {first_row}")
        if w.numel():
            ask = {"nonfinite_k": NUM_NONFINITE_KEPT, "every": _every(num_rows * num_columns)}
            fused = read_fused(self, w.detach(), first_row, **ask)
            if fused is not None:
                self._locate(fused, first_row)
                return
            r = read_plain(w.detach(), bar=self.largest.bar(), top_k=self.largest.limit, **ask)
            self.rows.add(r.rows, slice(first_row, first_row + w.shape[0]))
            self.columns.add(r.columns, slice(None))
            self.counts += r.counts
            self._locate(r, first_row)

    def _locate(self, r: MatrixReading | FusedReading, first_row: int) -> None:
        self.sketch.add(r.histogram, r.first)
        value, row, column = r.largest
        self.largest.add(value=value, row=row + first_row, column=column)
        kind, row, column = r.nonfinite
        if len(kind):
            self.nonfinite.add(kind=kind, row=row + first_row, column=column)

    def merge(self, other: WeightStats) -> None:
        """Take in what another accumulator has read of other rows of this matrix.

        Raises:
            MergeMismatch: It measures a matrix of another shape.
        """
        settings = [{"shape": s.shape, "top_k": s.largest.limit} for s in (self, other)]
        check_same("weight statistics", *settings)
        self.rows.merge(other.rows)
        self.columns.merge(other.columns)
        self.counts += other.counts
        self.sketch.merge(other.sketch)
        self.largest.merge(other.largest)
        self.nonfinite.merge(other.nonfinite)

    def result(self) -> WeightResult:
        """The statistics of all that was read; NaN where nothing was."""
        rows, columns = self.rows.columns("row"), self.columns.columns("column")
        missing = self.nonfinite.columns
        return WeightResult(
            matrix=self._matrix(),
            lines={name: np.concatenate([rows[name], columns[name]]) for name in rows},
            entries={"rank": np.arange(len(self.largest)), **self.largest.columns},
            nonfinite={
                "kind": np.where(missing["kind"] == 0, "nan", "inf"),
                "position": missing["row"],
                "channel": missing["column"],
            },
        )

    def _matrix(self) -> Columns:
        m = self.columns.moments.pooled()
        count = int(m.count[0])
        low, high = (
            (float(self.columns.range[0].min()), float(self.columns.range[1].max()))
            if count
            else (np.nan,) * 2
        )
        abs_max = max(-low, high)
        return {
            "num_rows": self.shape[0],
            "num_columns": self.shape[1],
            "min": low,
            "max": high,
            "abs_max": abs_max,
            "mean": float(m.mean[0]),
            "mean_abs": float(self.columns.abs_sum.sum()) / count if count else np.nan,
            "median": min(self.sketch.result(0.5), abs_max) if count else np.nan,
            "std": float(np.sqrt(m.variance[0])),
            "skewness": float(m.skewness[0]),
            "kurtosis": float(m.kurtosis[0]),
            "zero": int(self.counts[0]) / count if count else np.nan,
            "num_nan": int(self.counts[1]),
            "num_inf": int(self.counts[2]),
        }

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        state = pack(
            {"counts": self.counts, "settings": np.array([*self.shape, self.largest.limit], np.int64)}
        )
        state |= prefixed("rows.", pack(self.rows.arrays())) | prefixed(
            "columns.", pack(self.columns.arrays())
        )
        state |= prefixed("sketch.", self.sketch.state())
        state |= prefixed("largest.", self.largest.state()) | prefixed("nonfinite.", self.nonfinite.state())
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> WeightStats:
        """The accumulator that wrote `state`."""
        stats = cls(*(int(v) for v in state["settings"]))
        stats.counts = state["counts"].numpy().copy()
        stats.rows.load(unpack(state, "rows."))
        stats.columns.load(unpack(state, "columns."))
        stats.sketch = QuantileSketch.from_state(_under("sketch.", state))
        stats.largest.load(_under("largest.", state))
        stats.nonfinite.load(_under("nonfinite.", state))
        return stats

    def __repr__(self) -> str:
        return f"<WeightStats of a {self.shape[0]} x {self.shape[1]} matrix; .result()>"


def weight_stats(w: Float[Tensor, "..."], *, top_k: int = 64) -> WeightStats:
    """Read one whole matrix, or a vector as a matrix of one row.

    Args:
        w: One or two axes.
        top_k: How many of the largest entries to keep.
    """
    matrix = w[None] if w.ndim == 1 else w
    stats = WeightStats(*matrix.shape, top_k=top_k)
    with torch.inference_mode():
        stats.update(matrix)
    return stats


def _every(numel: int) -> int:
    """One tile in how many the sketch reads, so that at least 2^17 entries are read: their median is within 0.3 % of the true one."""
    return max(1, min(64, 1 << max(0, (numel >> 17).bit_length() - 1)))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
