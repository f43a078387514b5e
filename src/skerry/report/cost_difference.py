"""The difference of two runs in what they cost and how they are tamed, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from . import formatting as f

if TYPE_CHECKING:
    from skerry.outliers.cost_diff import CostDiff

MOST = 20


def costs_difference(costs: CostDiff) -> list[RenderableType]:
    """What moved beyond its interval, then what only one of the runs has."""
    counts = f"costs: {len(costs.moved)} moved beyond their intervals, {len(costs.came)} came, {len(costs.went)} went, {costs.same} are the same"
    parts: list[RenderableType] = [Text(counts, style="bold")]
    if costs.chosen[0] != costs.chosen[1]:
        before, after = (f.tidy(name) if name else "nothing" for name in costs.chosen)
        parts.append(Text(f"chosen: {before} before, {after} now"))
    if costs.moved:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("", "what", "before", "after"):
            table.add_column(column, overflow="fold")
        for m in costs.moved[:MOST]:
            cells = (
                m.kind,
                f.tidy(m.name),
                _with_ends(m.before, m.before_low, m.before_high),
                _with_ends(m.after, m.after_low, m.after_high),
            )
            table.add_row(*(Text(c) for c in cells))
        parts.append(table)
    for sign, names in (("+", costs.came), ("-", costs.went)):
        parts += [Text(f"{sign} {n.kind} {f.tidy(n.name)}") for n in names[:MOST]]
    if max(len(costs.moved), len(costs.came), len(costs.went)) > MOST:
        parts.append(Text(f"the first {MOST} of each are shown; --json gives all"))
    return parts


def _with_ends(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f.number(value)
    return f"{f.number(value)} [{f.number(low)}, {f.number(high)}]"
