"""Who comes first: activation, attention or weight outliers, over several trainings (seeds).

    difference_s = onset_s(second) - onset_s(first)        one number per training s; positive: `first` came first

The interval is a percentile bootstrap over trainings: they are the independent inputs, steps of one training are not. Onsets are known to
the spacing of the measurements, so a difference of 0 says "between the same two". An onset at the first step measured may lie anywhere before and
is left out. A verdict needs three trainings and an interval that
leaves out 0; with three such an interval covers less than it says (about 3 in 4 for a Gaussian), so read `num_first`, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from skerry.causes.bootstrap import bootstrap
from skerry.redesign.births_onset import KINDS, onset_rows

if TYPE_CHECKING:
    import pyarrow as pa

MIN_SERIES = 3


def birth_order(
    tables: Mapping[str, pa.Table] | Sequence[pa.Table], *, seed: int = 0
) -> list[dict[str, Any]]:
    """The order of the kinds over several trainings.

    Args:
        tables: The table `births` of each training, by name or in any order; several trainings in one table are told apart by `series`.
        seed: Of the bootstrap.

    Returns:
        Rows of the table `birth_order`, one per pair of kinds.
    """
    found: list[dict[str, Any]] = []
    every = list(tables.values() if isinstance(tables, Mapping) else tables)
    for number, table in enumerate(every):
        rows = table.to_pylist()
        for series in dict.fromkeys(row["series"] for row in rows):
            mine = [row for row in rows if row["series"] == series]
            # Monitors of several seeds may all call their training the same.
            found += onset_rows(mine, f"{number}/{series}")
    return order_rows(found, seed=seed)


def order_rows(onsets: Iterable[Mapping[str, Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `birth_order` from rows of `birth_onsets`.

    Args:
        onsets: Of all trainings.
        seed: Of the bootstrap.
    """
    born: dict[str, dict[str, int]] = {}
    for row in onsets:
        if row["onset"] is not None and row["before"] is not None:
            born.setdefault(row["series"], {})[row["kind"]] = row["onset"]
    return [_pair(list(born.values()), first, second, seed) for first, second in combinations(KINDS, 2)]


def _pair(born: list[dict[str, int]], first: str, second: str, seed: int) -> dict[str, Any]:
    differences = [float(o[second] - o[first]) for o in born if first in o and second in o]
    interval = bootstrap(differences, seed=seed)
    low, high = (x if math.isfinite(x) else None for x in (interval.low, interval.high))
    return {
        "first": first,
        "second": second,
        "difference": interval.value if differences else None,
        "ci_low": low,
        "ci_high": high,
        "num_series": len(differences),
        "num_first": sum(d > 0 for d in differences),
        "num_tied": sum(d == 0 for d in differences),
        "verdict": _verdict(first, second, low, high, len(differences)),
    }


def _verdict(first: str, second: str, low: float | None, high: float | None, num: int) -> str:
    if num < MIN_SERIES or low is None or high is None:
        return "undecided"
    return f"{first} first" if low > 0 else f"{second} first" if high < 0 else "undecided"
