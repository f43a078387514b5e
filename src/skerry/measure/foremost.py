"""The first few of many rows in a total order, whatever the order in which the rows come.

Because the order is total (ties are broken by place), merging in any order keeps the same rows. Used for the largest values
(order: |value| downwards, then sample, position, channel) and for the first non-finite ones (order: place).
Limit: with fewer rows than the limit, all are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from skerry.measure.accumulator import pack, unpack


class Foremost:
    """At most `limit` rows, sorted.

    Attributes:
        limit: How many rows are kept.
        columns: Arrays by name; all of one length.
    """

    def __init__(self, limit: int, order: tuple[str, ...], extra: tuple[str, ...] = ()) -> None:
        """Start empty.

        Args:
            limit: How many rows to keep.
            order: Columns that order the rows, the first counts most. `value` orders by |value| downwards and is float64;
                all others are int64 and order upwards.
            extra: Columns that are carried along.
        """
        self.limit, self.order = limit, order
        self.columns = {n: np.zeros(0, np.float64 if n == "value" else np.int64) for n in (*order, *extra)}

    def __len__(self) -> int:
        return len(self.columns[self.order[0]])

    @property
    def is_full(self) -> bool:
        """Whether a new row must push out another."""
        return len(self) >= self.limit

    def bar(self) -> float:
        """|value| that a new row must reach; 0 while there is room."""
        return float(abs(self.columns["value"][-1])) if self.is_full and self.limit else 0.0

    def add(self, **columns: np.ndarray) -> None:
        """Offer rows; the foremost stay."""
        joined = {n: np.concatenate([old, columns[n]]) for n, old in self.columns.items()}
        keys = [-np.abs(joined[n]) if n == "value" else joined[n] for n in reversed(self.order)]
        chosen = np.lexsort(keys)[: self.limit]
        self.columns = {n: v[chosen] for n, v in joined.items()}

    def merge(self, other: Foremost) -> None:
        """Offer the rows of another."""
        if len(other):
            self.add(**other.columns)

    def state(self) -> dict[str, Tensor]:
        """The rows."""
        return pack(self.columns)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the rows by those that `state` holds."""
        self.columns = unpack(state)
