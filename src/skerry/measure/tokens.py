"""Statistics by place of the token: by position in the input and by token id.

A token is massive at ratio r when its largest |x| is at least r times the median of that over the tokens of its input. An input whose
median is zero has no such scale, and none of its tokens counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from skerry.measure.accumulator import MASSIVE_RATIOS, Columns, pack, unpack
from skerry.measure.places import Places


class PositionTable:
    """Sums by position; grows to the longest input.

    Attributes:
        sums: float64 [2, position]: largest |x| and Euclidean norm of the tokens, summed.
        abs_max: float64 [position].
        counts: int64 [1 + ratio, position]: tokens, then massive ones at each ratio.
    """

    def __init__(self) -> None:
        self.sums, self.abs_max, self.counts = _empty_positions(0)

    def _grow(self, size: int) -> None:
        old = self.abs_max.size
        if size > old:
            sums, abs_max, counts = _empty_positions(size)
            sums[:, :old], abs_max[:old], counts[:, :old] = self.sums, self.abs_max, self.counts
            self.sums, self.abs_max, self.counts = sums, abs_max, counts

    def add(self, at: Places, abs_max: np.ndarray, norm: np.ndarray, massive: np.ndarray) -> None:
        """Count tokens.

        Args:
            at: Their places.
            abs_max: float64 [place].
            norm: float64 [place].
            massive: int64 [place], how many of MASSIVE_RATIOS each token reaches.
        """
        self._grow(int(at.position.max()) + 1)
        size = self.abs_max.size
        self.sums[0] += np.bincount(at.position, abs_max, size)
        self.sums[1] += np.bincount(at.position, norm, size)
        self.counts[0] += np.bincount(at.position, minlength=size)
        np.maximum.at(self.abs_max, at.position, abs_max)
        for level, found in _levels(massive):
            self.counts[level] += np.bincount(at.position[found], minlength=size)

    def merge(self, other: PositionTable) -> None:
        """Take in the sums of another."""
        size = other.abs_max.size
        self._grow(size)
        self.sums[:, :size] += other.sums
        self.counts[:, :size] += other.counts
        np.maximum(self.abs_max[:size], other.abs_max, out=self.abs_max[:size])

    def result(self) -> Columns:
        """Columns of the table `positions`; positions where nothing was measured are left out."""
        seen = np.flatnonzero(self.counts[0])
        count = self.counts[0, seen]
        return {
            "position": seen,
            "count": count,
            "abs_max": self.abs_max[seen],
            "abs_max_mean": self.sums[0, seen] / count,
            "norm_mean": self.sums[1, seen] / count,
            **{f"massive_{r}": self.counts[i + 1, seen] for i, r in enumerate(MASSIVE_RATIOS)},
        }

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        return pack({"sums": self.sums, "abs_max": self.abs_max, "counts": self.counts})

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the sums by those of `state`."""
        arrays = unpack(state)
        self.sums, self.abs_max, self.counts = arrays["sums"], arrays["abs_max"], arrays["counts"]


def _empty_positions(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros((2, size)), np.zeros(size), np.zeros((1 + len(MASSIVE_RATIOS), size), np.int64)


class TokenTable:
    """Sums by token id; only the ids that were met are kept.

    Attributes:
        ids: int64 [id], ascending.
        sums: float64 [id, sum].
        counts: int64 [id, count].
    """

    def __init__(self, num_sums: int, num_counts: int) -> None:
        self.ids = np.zeros(0, np.int64)
        self.sums = np.zeros((0, num_sums))
        self.counts = np.zeros((0, num_counts), np.int64)

    def add(self, ids: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> None:
        """Add to the sums of some ids.

        Args:
            ids: int64 [id], ascending, each once.
            sums: float64 [id, sum].
            counts: int64 [id, count].
        """
        if not len(ids):
            return
        slot = np.searchsorted(self.ids, ids)
        known = slot < len(self.ids)
        known[known] = self.ids[slot[known]] == ids[known]
        if not known.all():
            self._insert(ids[~known])
            slot = np.searchsorted(self.ids, ids)
        self.sums[slot] += sums
        self.counts[slot] += counts

    def _insert(self, new: np.ndarray) -> None:
        at = np.searchsorted(self.ids, new)
        self.ids = np.insert(self.ids, at, new)
        self.sums = np.insert(self.sums, at, 0.0, axis=0)
        self.counts = np.insert(self.counts, at, 0, axis=0)

    def merge(self, other: TokenTable) -> None:
        """Take in the sums of another."""
        self.add(other.ids, other.sums, other.counts)

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        return pack({"ids": self.ids, "sums": self.sums, "counts": self.counts})

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the sums by those of `state`."""
        arrays = unpack(state)
        self.ids, self.sums, self.counts = arrays["ids"], arrays["sums"], arrays["counts"]


class TokenStats:
    """Positions and token ids of one activation site."""

    def __init__(self) -> None:
        self.positions = PositionTable()
        self.by_id = TokenTable(1, 2 + len(MASSIVE_RATIOS))

    def add(self, at: Places, abs_max: np.ndarray, square: np.ndarray) -> None:
        """Count the tokens of a batch.

        Args:
            at: Their places.
            abs_max: [place], largest |x|.
            square: [place], sum of squares.
        """
        size = abs_max.astype(np.float64)
        massive = _massive(at, size)
        self.positions.add(at, size, np.sqrt(square), massive)
        index = at.tokens
        counts = np.zeros((len(index.ids), 2 + len(MASSIVE_RATIOS)), np.int64)
        counts[:, 0], counts[:, 1] = index.count, index.num_samples
        for level, found in _levels(massive):
            counts[:, 1 + level] = np.bincount(index.inverse[found], minlength=len(index.ids))
        sums = np.bincount(index.inverse, size, len(index.ids))[:, None]
        self.by_id.add(index.ids, sums, counts)

    def merge(self, other: TokenStats) -> None:
        """Take in the sums of another."""
        self.positions.merge(other.positions)
        self.by_id.merge(other.by_id)

    def tokens(self) -> Columns:
        """Columns of the table `tokens`, without the text."""
        count = self.by_id.counts.T
        return {
            "token_id": self.by_id.ids,
            "count": count[0],
            "num_samples": count[1],
            "abs_max_mean": self.by_id.sums[:, 0] / np.maximum(count[0], 1),
            **{f"massive_{r}": count[2 + i] for i, r in enumerate(MASSIVE_RATIOS)},
        }


def _massive(at: Places, abs_max: np.ndarray) -> np.ndarray:
    """How many of MASSIVE_RATIOS each place reaches."""
    length = at.common_length
    if length:
        middle = [(length - 1) // 2, length // 2]
        median = np.partition(abs_max.reshape(-1, length), middle, axis=1)[:, middle].mean(1)
    else:
        median = np.array([np.median(abs_max[a:b]) for a, b in zip(at.start, at.start[1:], strict=False)])
    scale = np.where(median > 0, median, np.inf)[at.which]
    level = (abs_max >= MASSIVE_RATIOS[0] * scale).astype(np.int64)
    found = np.flatnonzero(level)  # few: the other ratios are asked of these only
    for ratio in MASSIVE_RATIOS[1:]:
        level[found] += abs_max[found] >= ratio * scale[found]
    return level


def _levels(massive: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """From 1: the places that reach so many ratios; levels that nobody reaches are left out."""
    return [(level, np.flatnonzero(massive >= level)) for level in range(1, int(massive.max(initial=0)) + 1)]
