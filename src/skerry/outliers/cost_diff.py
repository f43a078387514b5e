"""Costs and taming of two runs compared: which losses moved beyond their intervals, which methods and seams came, went or moved.

A cost has moved when its two 95 % intervals do not overlap; without intervals, and for the ranges of seams, when it differs by more than a
quarter. It came when only the second run has it. Controls are not compared: they are draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from skerry.outliers.finding import Record

if TYPE_CHECKING:
    from skerry.run import Run

TOLERANCE = 0.25
DAMAGE = ("loss", "distance")
Row = dict[str, Any]


class CostMoved(Record):
    """One number in both runs, beyond its interval."""

    kind: str
    """scheme (whole model), site, clipping, pruning, method, or seam (range of the tamed tensor)."""
    name: str
    """Which one: the scheme, the site and scheme, the method and scheme, the seam and method, ..."""
    outcome: str
    """What the number is: change of the loss, of the distance, or range after."""
    before: float
    """In the first run."""
    before_low: float | None = None
    """Lower end of its interval; None without."""
    before_high: float | None = None
    """Upper end of it."""
    after: float
    """In the second run."""
    after_low: float | None = None
    """Lower end of its interval; None without."""
    after_high: float | None = None
    """Upper end of it."""


class CostName(Record):
    """What one run has and the other has not."""

    kind: str
    """As in moved."""
    name: str
    """As in moved."""


class CostDiff(Record):
    """What differs in costs and taming."""

    moved: tuple[CostMoved, ...]
    """In both runs, beyond the intervals; the largest difference first."""
    came: tuple[CostName, ...]
    """Only in the second run."""
    went: tuple[CostName, ...]
    """Only in the first run."""
    same: int
    """Numbers within their intervals."""
    chosen: tuple[str | None, str | None]
    """The chosen method in the first run and in the second; None where none was chosen."""


class _Table(NamedTuple):
    """How the rows of a table are told apart and what of them is compared."""

    kind: str
    name: Callable[[Row], str]
    value: str = "change"


def _place(r: Row) -> str:
    expert = "" if r["expert"] is None else f"[{r['expert']}]"
    return f"{r['layer']}.{r['site']}{expert} under {r['scheme']}"


_TABLES: Mapping[str, _Table] = {
    "quantization_grid": _Table("scheme", lambda r: str(r["scheme"])),
    "quantization_sites": _Table("site", _place),
    "clipping": _Table("clipping", lambda r: f"{r['site']} at quantile {r['quantile']:g}"),
    "pruning": _Table("pruning", lambda r: f"{r['method']} at sparsity {r['sparsity']:g}"),
    "methods": _Table("method", lambda r: f"{r['method']} under {r['scheme']}"),
    "seam_changes": _Table("seam", lambda r: f"{r['seam']} by {r['method']}", "range_after"),
}


def compare_costs(before: Run, after: Run) -> CostDiff | None:
    """Compare the tables of costs and taming that both runs hold; None where there is none."""
    shared = [name for name in _TABLES if before.has(name) and after.has(name)]
    if not shared:
        return None
    moved: list[CostMoved] = []
    came: list[CostName] = []
    went: list[CostName] = []
    same = 0
    for name in shared:
        kind = _TABLES[name].kind
        old, new = (_read(run.table(name).to_pylist(), _TABLES[name]) for run in (before, after))
        came += [CostName(kind=kind, name=key) for key in new if key not in old]
        went += [CostName(kind=kind, name=key) for key in old if key not in new]
        for key in old:
            if key in new:
                found = _moved(old[key], new[key], _TABLES[name], key)
                moved += [found] if found is not None else []
                same += found is None
    moved.sort(key=lambda m: -abs(m.after - m.before))
    return CostDiff(
        moved=tuple(moved),
        came=tuple(came),
        went=tuple(went),
        same=same,
        chosen=(_chosen(before), _chosen(after)),
    )


def _read(rows: list[Row], table: _Table) -> dict[str, Row]:
    """Rows with a number, each by its name; of several seeds the first."""
    found: dict[str, Row] = {}
    for r in rows:
        value = r[table.value]
        is_damage = r.get("outcome") is None or r["outcome"] in DAMAGE
        if value is not None and math.isfinite(value) and is_damage and not r.get("control"):
            found.setdefault(table.name(r), r)
    return found


def _moved(old: Row, new: Row, table: _Table, name: str) -> CostMoved | None:
    a, b = old[table.value], new[table.value]
    ends = [_ends(r) if table.value == "change" else None for r in (old, new)]
    if ends[0] is not None and ends[1] is not None:
        apart = ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0]
    else:
        apart = abs(b - a) > TOLERANCE * max(abs(a), abs(b))
    if not apart:
        return None
    (low, high), (low2, high2) = (e or (None, None) for e in ends)
    outcome = f"change of the {new['outcome']}" if new.get("outcome") else "range after"
    return CostMoved(
        kind=table.kind, name=name, outcome=outcome, before=a, before_low=low, before_high=high, after=b, after_low=low2, after_high=high2
    )  # fmt: skip


def _ends(r: Row) -> tuple[float, float] | None:
    low, high = r["ci_low"], r["ci_high"]
    return (low, high) if low is not None and high is not None and math.isfinite(high - low) else None


def _chosen(run: Run) -> str | None:
    if not run.has("methods"):
        return None
    return next((str(r["method"]) for r in run.table("methods").to_pylist() if r["chosen"]), None)
