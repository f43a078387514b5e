"""A watched series on a terminal: how the three kinds grew, when they were born, who came first, which channels stayed. Fits 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from . import formatting as f
from .births_words import KIND_WORDS, born, course_words, order_words, value

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDE = 24
_CHANNELS = 8


def births_terminal(document: Mapping[str, Any], console: Console) -> None:
    """Print a watched series.

    Args:
        document: What `skerry watch --json` prints.
        console: Where to print; its width, colour and encoding are respected.
    """
    blocks = (console.encoding or "").lower().startswith("utf")
    console.print(births_view(document, blocks=blocks))


def births_view(document: Mapping[str, Any], *, blocks: bool = True) -> RenderableType:
    """The same as one rich renderable; `blocks`: whether bars of block characters may be shown."""
    corpus = document["corpus"]
    read = f"{corpus['num_samples']:,} inputs of {corpus['tokens_per_sample']:,} tokens, {f.tidy(corpus['name'])}"
    parts: list[RenderableType] = []
    for series in document["series"]:
        steps = series["steps"]
        heading = f"{f.count(len(steps), 'checkpoint')}, step {steps[0]:,} to {steps[-1]:,}; each read {read}"
        parts += [
            Text.assemble(("skerry watch ", "bold"), f.tidy(series["name"])),
            Text(heading, style="dim"),
            kinds_table(series, blocks=blocks),
            Text(course_words(series)),
            Text(),
        ]
        if series["channels"]:
            parts += [
                Text("Strongest channels of the residual stream at the end", style="bold"),
                channels_table(series),
                Text(),
            ]
    if lines := order_words(document["order"], len(document["series"])):
        many = len(document["series"])
        parts += [Text(f"Over {many} trainings, with 95 % intervals over trainings", style="bold")]
        parts += [*(Text(f"  {line}") for line in lines), Text()]
    parts += [Text(f"Note: {f.tidy(note)}", style="dim") for note in document["notes"]]
    parts.append(Text.assemble(("Run  ", "bold"), f.tidy(str(document["run"])), overflow="fold"))
    return Stack(*parts)


def kinds_table(series: Mapping[str, Any], *, blocks: bool = True) -> Table:
    """One line for each kind: what is followed, its course, first and last level, when it was born."""
    columns = [("Outliers", False), *([("Course", False)] if blocks else []), ("Start", True), ("End", True)]
    table = _table(*columns, ("Largest", True), ("Born", False))
    for onset in series["onsets"]:
        kind = onset["kind"]
        name = Text(kind, style="bold")
        name.append(f"\n{KIND_WORDS[kind]}", style="not bold dim")
        levels = series["levels"][kind]["levels"]
        course = [Text(sparkline(levels, is_log=kind != "attention"), style="cyan")] if blocks else []
        numbers = [Text(value(kind, onset[key])) for key in ("start", "final", "peak")]
        when = Text(born(onset), style="dim" if onset["onset"] is None else "bold yellow")
        table.add_row(name, *course, *numbers, when)
    return table


def channels_table(series: Mapping[str, Any]) -> Table:
    """The strongest channels of the residual stream at the end, and since when they are."""
    table = _table(("Channel", True), ("Size", True), ("Since step", True), ("Blocks", False))
    for c in series["channels"][:_CHANNELS]:
        cells = (
            str(c["channel"]),
            f"{f.ratio(c['size'])} x median",
            f"{c['since']:,}",
            f.compact_ranges(c["layers"]),
        )
        table.add_row(*(Text(t) for t in cells))
    return table


def sparkline(levels: Sequence[float | int | None], *, is_log: bool, most: int = _WIDE) -> str:
    """A course in block characters, one for each checkpoint (or the largest of neighbours), from the smallest level to the largest."""
    known = [x for x in levels if x is not None and math.isfinite(x)]
    if not known:
        return ""
    pool = -(-len(known) // most)
    pooled = [max(known[i : i + pool]) for i in range(0, len(known), pool)]
    if is_log and min(pooled) > 0:
        pooled = [math.log(x) for x in pooled]
    low, high = min(pooled), max(pooled)
    if high - low <= 1e-9 * max(1.0, abs(high)):
        return _BLOCKS[0] * len(pooled)
    return "".join(_BLOCKS[min(7, int(8 * (x - low) / (high - low)))] for x in pooled)


def _table(*columns: tuple[str, bool]) -> Table:
    """An open table; a column is its name and whether it holds numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table
