"""The difference of two runs in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from skerry.outliers.finding import Finding

from .cost_difference import costs_difference

if TYPE_CHECKING:
    from skerry.outliers.diff import Diff

MOST = 20


def place(f: Finding) -> str:
    """Where a finding is, in words."""
    words = {"channel": f.channel, "row": f.row, "column": f.column, "head": f.head, "position": f.position}
    return ", ".join(f"{name} {value}" for name, value in words.items() if value is not None) or (
        f.token or ""
    )


def difference(diff: Diff) -> RenderableType:
    """Counts, then what came, went, changed and moved."""
    parts: list[RenderableType] = [Text(f"warning: {warning}", style="yellow") for warning in diff.warnings]
    if diff.costs is not None and not any((diff.came, diff.went, diff.changed, diff.same)):
        return Group(*parts, *costs_difference(diff.costs))
    counts = (
        f"{len(diff.came)} came, {len(diff.went)} went, {len(diff.changed)} changed, {diff.same} are the same"
    )
    parts.append(Text(counts, style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "site", "type", "where", "before", "after"):
        table.add_column(column, overflow="fold")
    for sign, findings in (("+", diff.came), ("-", diff.went)):
        for f in findings[:MOST]:
            before, after = ("", f"{f.value:.4g}") if sign == "+" else (f"{f.value:.4g}", "")
            table.add_row(sign, _site(f), f.type, place(f), before, after)
    for change in diff.changed[:MOST]:
        f = change.after
        table.add_row("~", _site(f), f.type, place(f), f"{change.before.value:.4g}", f"{f.value:.4g}")
    if table.row_count:
        parts.append(table)
    longest = max(len(diff.came), len(diff.went), len(diff.changed))
    if longest > MOST:
        parts.append(Text(f"the first {MOST} of each are shown; --json gives all"))
    for moved in diff.moved[:MOST]:
        before, after = (", ".join(map(str, layers)) for layers in (moved.before, moved.after))
        parts.append(
            Text(f"{moved.type} at {moved.site}, {moved.place}: layers {before} before, {after} now")
        )
    return Group(*parts, *(costs_difference(diff.costs) if diff.costs is not None else []))


def _site(f: Finding) -> str:
    layer = "" if f.layer is None else f"{f.layer}."
    return f"{layer}{f.site}" + ("" if f.expert is None else f"[{f.expert}]")
