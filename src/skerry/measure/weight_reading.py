"""What some rows of a matrix say: the intermediate that the plain and the fused path both produce.

This file is the plain path in float64, on any device, and the definition; the kernel in kernels/stats.c must agree with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.measure.moments import Moments, pool
from skerry.measure.sketch import histogram

# Entries that the plain path turns to float64 at once.
_BLOCK = 1 << 18


@dataclass
class LineReading:
    """Statistics of rows, or of columns. Non-finite entries are left out.

    Attributes:
        moments: Of every line.
        low: [line], smallest value; inf without any.
        high: [line], largest value; -inf without any.
        abs_sum: float64 [line], sum of |w|.
    """

    moments: Moments
    low: np.ndarray
    high: np.ndarray
    abs_sum: np.ndarray


@dataclass
class MatrixReading:
    """Statistics of some rows of a matrix.

    Attributes:
        rows: One line per row read.
        columns: One line per column.
        counts: int64 [3]: exact zeros, NaN, infinite.
        histogram: int64 [bucket] of |w|, of the sampled entries, from bucket `first` on.
        first: Number of the histogram's first bucket.
        largest: value, row, column: at least those that can enter the list.
        nonfinite: kind (0 NaN, 1 infinite), row, column of the first ones.
    """

    rows: LineReading
    columns: LineReading
    counts: np.ndarray
    histogram: np.ndarray
    first: int
    largest: tuple[np.ndarray, np.ndarray, np.ndarray]
    nonfinite: tuple[np.ndarray, np.ndarray, np.ndarray]


def read_plain(
    w: Float[Tensor, "row column"], *, bar: float, top_k: int, nonfinite_k: int, every: int
) -> MatrixReading:
    """Read some rows, the first of which has a number that is a multiple of 16 x `every`.

    Args:
        w: The rows.
        bar: |value| that an entry must reach to count among the largest.
        top_k: How many of the largest are wanted.
        nonfinite_k: How many non-finite entries to locate.
        every: The histogram reads one 16 x 16 tile in so many, on diagonals, so that it favours no row and no column.
    """
    step = max(1, _BLOCK // w.shape[1] // (16 * every)) * 16 * every
    starts = range(0, w.shape[0], step)
    parts = [_read_block(w[a : a + step], a, bar, top_k, nonfinite_k, every) for a in starts]
    return parts[0] if len(parts) == 1 else _join(parts)


def _read_block(w: Tensor, first: int, bar: float, top_k: int, nonfinite_k: int, every: int) -> MatrixReading:
    g = (w.cpu() if w.device.type == "mps" else w).double()
    finite = torch.isfinite(g)
    x = torch.where(finite, g, 0.0)
    size = torch.where(finite, x.abs(), -1.0)
    bad = (~finite).nonzero()[:nonfinite_k].cpu()
    kind = torch.isinf(g[bad[:, 0], bad[:, 1]]).long().cpu().numpy()
    num_bad = int((~finite).sum())
    num_nan = int(torch.isnan(g).sum())
    k = min(top_k, size.numel())
    bar = max(bar, float(size.flatten().topk(k).values[-1])) if k else np.inf
    found = (size >= bar).nonzero().cpu().numpy()
    value = x[size >= bar].cpu().numpy()
    equal = np.abs(value) == bar
    enough = ~equal | (np.cumsum(equal) <= top_k)
    found, value = found[enough], value[enough]
    return MatrixReading(
        rows=_lines(g, x, finite, 1),
        columns=_lines(g, x, finite, 0),
        counts=np.array([int(((x == 0) & finite).sum()), num_nan, num_bad - num_nan], np.int64),
        histogram=histogram(g[sampled(g.shape[0], g.shape[1], every).to(g.device)]),
        first=0,
        largest=(value, found[:, 0] + first, found[:, 1]),
        nonfinite=(kind, bad[:, 0].numpy() + first, bad[:, 1].numpy()),
    )


def sampled(num_rows: int, num_columns: int, every: int) -> Tensor:
    """Which entries [row, column] the histogram reads: (row // 16 + column // 16) % every == 0."""
    tile = torch.arange(num_rows)[:, None] // 16 + torch.arange(num_columns) // 16
    return tile % every == 0


def _lines(g: Tensor, x: Tensor, finite: Tensor, along: int) -> LineReading:
    n = finite.sum(along)
    mean = x.sum(along) / n.clamp(min=1)
    c = torch.where(finite, x - mean.unsqueeze(along), 0.0)
    c2 = c * c
    sums = torch.stack([mean, c2.sum(along), (c2 * c).sum(along), (c2 * c2).sum(along)])
    return LineReading(
        Moments(n.cpu().numpy(), sums.cpu().numpy()),
        torch.where(finite, g, torch.inf).amin(along).cpu().numpy(),
        torch.where(finite, g, -torch.inf).amax(along).cpu().numpy(),
        x.abs().sum(along).cpu().numpy(),
    )


def _join(parts: list[MatrixReading]) -> MatrixReading:
    """Readings of consecutive rows as one."""

    def triple(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b, c = zip(*(getattr(p, name) for p in parts), strict=True)
        return np.concatenate(a), np.concatenate(b), np.concatenate(c)

    rows, columns = [p.rows for p in parts], [p.columns for p in parts]
    return MatrixReading(
        rows=LineReading(
            Moments(
                np.concatenate([r.moments.count for r in rows]),
                np.concatenate([r.moments.sums for r in rows], 1),
            ),
            np.concatenate([r.low for r in rows]),
            np.concatenate([r.high for r in rows]),
            np.concatenate([r.abs_sum for r in rows]),
        ),
        columns=LineReading(
            pool(np.stack([c.moments.count for c in columns]), np.stack([c.moments.sums for c in columns])),
            np.min([c.low for c in columns], axis=0),
            np.max([c.high for c in columns], axis=0),
            np.sum([c.abs_sum for c in columns], axis=0),
        ),
        counts=np.sum([p.counts for p in parts], axis=0),
        histogram=np.sum([p.histogram for p in parts], axis=0),
        first=0,
        largest=triple("largest"),
        nonfinite=triple("nonfinite"),
    )
