"""A table of a run as numpy columns, its rows grouped by place; every statistic over a group in one sort.

A 7B model has three million rows of channels in some hundred groups, a model of experts as many in tens of thousands: nothing here
loops over rows or groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skerry.anatomy.sites import Site
from skerry.run.tables import TABLES, schema

Tables = Mapping[str, pa.Table]
PLACE = ("layer", "site", "expert")


class Frame:
    """Columns of one table, rows grouped by the values of some of them.

    Attributes:
        keys: The groups, each the tuple of its values; ascending in no particular sense.
        group: int64 [row], index into `keys`.
    """

    def __init__(self, table: pa.Table, by: Sequence[str] = PLACE) -> None:
        self.table = table
        code, values = np.zeros(table.num_rows, np.int64), [()]
        for name in by:
            new, words = _codes(table[name])
            code, old = code * max(1, len(words)) + new, values
            found, code = np.unique(code, return_inverse=True)
            values = [(*old[c // len(words)], words[c % len(words)]) for c in found.tolist()]
        self.keys: list[tuple[Any, ...]] = values if table.num_rows else []
        self.group = code.reshape(-1)
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, name: str) -> np.ndarray:
        """A numeric column: counts as int64 (null is -1), the rest as float64 (null is NaN)."""
        if name not in self._columns:
            column = self.table[name].combine_chunks()
            fill, kind = (-1, np.int64) if pa.types.is_integer(column.type) else (np.nan, np.float64)
            self._columns[name] = pc.fill_null(column, fill).to_numpy(zero_copy_only=False).astype(kind)
        return self._columns[name]

    def text(self, name: str, rows: np.ndarray) -> list[Any]:
        """Some cells of any column as Python values."""
        return self.table[name].take(pa.array(rows, pa.int64())).to_pylist()

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.keys)

    @cached_property
    def sites(self) -> list[Site]:
        """The groups as sites, where rows are grouped by place."""
        return [Site(*key) for key in self.keys]

    @cached_property
    def index(self) -> dict[tuple[Any, ...], int]:
        """Key to number of the group."""
        return {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.group, kind="stable")
        return order, np.searchsorted(self.group[order], np.arange(self.num_groups + 1))

    def rows(self, group: int) -> np.ndarray:
        """The rows of one group, in the order of the table."""
        order, start = self._order
        return order[start[group] : start[group + 1]]

    def groups(self) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
        """Every group's key and rows."""
        return ((key, self.rows(i)) for i, key in enumerate(self.keys))

    def sum(self, x: np.ndarray) -> np.ndarray:
        """float64 [group], sum; NaN counts as nothing."""
        return np.bincount(self.group, np.nan_to_num(x, nan=0.0), self.num_groups)

    def count(self, mask: np.ndarray | None = None) -> np.ndarray:
        """int64 [group], rows (where `mask`)."""
        return np.bincount(self.group if mask is None else self.group[mask], minlength=self.num_groups)

    def max(self, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """float64 [group], largest value (where `mask`); NaN is passed over, -inf where nothing is."""
        out = np.full(self.num_groups, -np.inf)
        use = np.isfinite(x) if mask is None else np.isfinite(x) & mask
        np.maximum.at(out, self.group[use], x[use])
        return out

    def quantiles(self, x: np.ndarray, q: Sequence[float], mask: np.ndarray | None = None) -> np.ndarray:
        """float64 [quantile, group], interpolated; over finite values (where `mask`), NaN where there are none."""
        use = np.flatnonzero(np.isfinite(x) if mask is None else np.isfinite(x) & mask)
        group = self.group[use]
        use = use[np.lexsort((x[use], group))]
        num = np.bincount(group, minlength=self.num_groups)
        start = np.cumsum(num) - num
        ranked = np.append(x[use], np.nan)
        out = np.empty((len(q), self.num_groups))
        for i, share in enumerate(q):
            at = start + share * np.maximum(num - 1, 0)
            low = np.floor(at).astype(np.int64)
            high = np.minimum(low + 1, start + np.maximum(num - 1, 0))
            out[i] = ranked[low] + (at - low) * (ranked[high] - ranked[low])
        out[:, num == 0] = np.nan
        return out

    def rank(self, x: np.ndarray) -> np.ndarray:
        """int64 [row], 0 for the largest value of its group; ties in the order of the table, NaN last."""
        order = np.lexsort((-np.nan_to_num(x, nan=-np.inf), self.group))
        _, start = self._order
        rank = np.empty(len(self), np.int64)
        rank[order] = np.arange(len(self)) - start[self.group[order]]
        return rank


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


class Frames:
    """All tables of a run, grouped when first asked for; a table that was not measured is empty."""

    def __init__(self, tables: Tables) -> None:
        self.tables = {
            name: tables[name] if name in tables else schema(name).empty_table() for name in TABLES
        }
        self._made: dict[tuple[str, tuple[str, ...]], Frame] = {}

    def __call__(self, name: str, by: Sequence[str] = PLACE) -> Frame:
        """A table grouped by some of its columns."""
        key = name, tuple(by)
        if key not in self._made:
            self._made[key] = Frame(self.tables[name], by)
        return self._made[key]

    @cached_property
    def own(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Rows of `sites` that have numbers of their own, by place."""
        rows = self.tables["sites"].to_pylist()
        return {
            (r["layer"], r["site"], r["expert"]): r for r in rows if r["same_as"] is None and r["num_tokens"]
        }

    @cached_property
    def aliases(self) -> dict[Site, Site]:
        """Sites that are the very same tensor as another, and that other."""
        rows = self.tables["sites"].select([*PLACE, "same_as"]).to_pylist()
        return {
            Site(r["layer"], r["site"], r["expert"]): Site.parse(r["same_as"]) for r in rows if r["same_as"]
        }

    def of_sites(self, frame: Frame, name: str) -> np.ndarray:
        """float64 [group of `frame`], a column of `sites` for every group; NaN where the site has none."""
        return np.array([_number(self.own.get(key, {}).get(name)) for key in frame.keys], np.float64)

    @cached_property
    def scale(self) -> dict[tuple[Any, ...], float]:
        """What |x| is normally like at every site: its median.

        Where more than half of the values are zero (behind a ReLU) the median says nothing; then it is 0.6745 times the channels'
        median root mean square, which is the median of |x| for a Gaussian of that size.
        """
        channels = self("channels")
        rms = np.hypot(channels["mean"], channels["std"])
        typical = dict(zip(channels.keys, 0.6745 * channels.quantiles(rms, (0.5,))[0], strict=True))
        out = {}
        for key, row in self.own.items():
            median = _number(row["median"])
            out[key] = median if median > 0 else typical.get(key, float("nan"))
        return out

    def scale_of(self, frame: Frame) -> np.ndarray:
        """float64 [group], `scale` for every group; infinite where a site has none, so that nothing exceeds it."""
        value = np.array([self.scale.get(key, np.nan) for key in frame.keys], np.float64)
        return np.where(value > 0, value, np.inf)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
