"""The summary on a terminal: paragraph, strongest findings, layer x site strip, paths. Fits 80 columns and reads without colour."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from skerry.anatomy.sites import ACTIVATION_PARTS
from skerry.outliers.finding import SiteProfile, Summary

from . import formatting as f
from . import heat
from .groups import Group, group
from .words import headline, words

MOST_ROWS = 10
_LABEL = 12  # the longest part is `mlp.down.in`


def terminal(summary: Summary, console: Console, *, report: Path | str | None = None) -> None:
    """Print the whole view.

    Args:
        summary: What was found.
        console: Where to print; its width, colour and encoding are respected.
        report: Path of the HTML report, if one was written.
    """
    console.print(view(summary, report=report, width=console.width, colour=console.color_system is not None))


def view(
    summary: Summary, *, report: Path | str | None = None, width: int = 80, colour: bool = True
) -> RenderableType:
    """The same as one rich renderable."""
    parts: list[RenderableType] = [
        Text.assemble(("skerry ", "bold"), f.tidy(summary.model.name)),
        Text(headline(summary), style="dim"),
    ]
    parts += [Text(f"Warning: {f.tidy(w)}", style="yellow") for w in summary.warnings]
    parts += [Text(), Text(words(summary)), Text()]
    if summary.findings:
        parts += [findings(group(summary.findings)), *_more(summary, report), Text()]
    if summary.profiles.sites:
        parts += [strip(summary.profiles.sites, width=width, colour=colour), Text()]
    parts.append(Text.assemble(("Run     ", "bold"), f.tidy(summary.run), overflow="fold"))
    if report is not None:
        parts.append(Text.assemble(("Report  ", "bold"), f.tidy(str(report)), overflow="fold"))
    return Padding(Stack(*parts), (0, 0))


def findings(groups: list[Group]) -> Table:
    """The strongest groups of findings, one row each; numbers are the largest of the group."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    table.add_column("Outlier", no_wrap=True)
    table.add_column("Where", overflow="fold", ratio=2)
    table.add_column("Layers", overflow="fold", max_width=13)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("× normal", justify="right", no_wrap=True)
    table.add_column("Recurs", justify="right", no_wrap=True)
    for g in groups[:MOST_ROWS]:
        where = f"{g.site_text}{f', {g.heads:,} heads' if g.heads > 1 else ''}\n{g.what}"
        x = g.first
        value = f.percent(x.value) if x.type.startswith("sink") else f.number(x.value)
        table.add_row(
            *(
                Text(t)
                for t in (x.type, where, g.layer_text, value, f.span(*g.ratios), f.percent(g.recurrence))
            )
        )
    return table


def _more(summary: Summary, report: Path | str | None) -> Iterable[Text]:
    groups = len(group(summary.findings))
    shown = min(groups, MOST_ROWS)
    rest = f", {groups - shown:,} more not shown" if groups > shown else ""
    where = "the report lists them all" if report is not None else "`--json` prints them all"
    yield Text(
        f"{f.count(shown, 'row')} for {f.count(len(summary.findings), 'finding')}{rest}; {where}.",
        style="dim",
    )


def strip(sites: tuple[SiteProfile, ...], *, width: int = 80, colour: bool = True) -> RenderableType:
    """Layer x site map of max / median: coloured cells that hold a number or a letter, so that colour is never needed.

    Experts of a site share a cell, the largest shown; layers beyond the width share cells likewise.
    """
    worst: dict[tuple[str, int], float] = {}
    for s in sites:
        if s.layer is not None:
            worst[s.site, s.layer] = max(s.max_to_median, worst.get((s.site, s.layer), 0.0))
    num_layers = 1 + max((layer for _, layer in worst), default=0)
    room = max(8, width - _LABEL - 1)
    cell, pool = next(((c, 1) for c in (5, 2, 1) if c * num_layers <= room), (1, -(-num_layers // room)))
    columns = -(-num_layers // pool)
    lines = [_axis(columns, cell, pool)]
    for part in sorted(
        {s for s, _ in worst}, key=lambda p: list(ACTIVATION_PARTS).index(p) if p in ACTIVATION_PARTS else 99
    ):
        line = Text(f"{part:<{_LABEL}} ", no_wrap=True, overflow="crop")
        for column in range(columns):
            found = [worst[part, n] for n in range(column * pool, (column + 1) * pool) if (part, n) in worst]
            line.append_text(_cell(max(found) if found else None, cell, colour))
        lines.append(line)
    title = f"Largest value / median by site and layer{f' ({pool} layers a column)' if pool > 1 else ''}"
    return Stack(Text(title, style="bold"), *lines, *([_legend(colour)] if cell < 5 else []))


def _axis(columns: int, cell: int, pool: int) -> Text:
    every = 1 if cell == 5 else 4
    marks = "".join(
        f"{c * pool:>{cell}}" if cell == 5 else f"{c * pool:<{cell * every}}"
        for c in range(0, columns, every)
    )
    return Text(
        f"{'':<{_LABEL}} {marks}"[: _LABEL + 1 + max(columns * cell, 8)],
        style="dim",
        no_wrap=True,
        overflow="crop",
    )


def _cell(value: float | None, cell: int, colour: bool) -> Text:
    if value is None:
        return Text(" " * cell)
    step = heat.ratio_step(value)
    text = f"{f.short(value):>{cell - 1}} " if cell == 5 else f"{heat.LETTERS[step]:^{cell}}"
    return Text(text, style=f"{heat.ink(step)} on {heat.LIGHT[step]}" if colour else "")


def _legend(colour: bool) -> Text:
    line = Text("from:  · 0", no_wrap=True)
    for i, step in enumerate(heat.RATIO_STEPS, start=1):
        line.append("  ")
        line.append(heat.LETTERS[i], style=f"{heat.ink(i)} on {heat.LIGHT[i]}" if colour else "")
        line.append(f" {f.short(step)}")
    return line
