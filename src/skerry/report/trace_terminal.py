"""A trace and the verdicts of claims on a terminal. Fits 80 columns; verdicts are words, colour only repeats them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from . import formatting as f
from .claims_section import MARKS
from .effect_charts import controls, strongest
from .lifecycle_cards import signed_percent
from .trace_data import Row, Trace, from_run, interval, known, part_name, plain
from .trace_words import claim_words, dose_words, effect_words, origin_paragraphs, role_words

if TYPE_CHECKING:
    from skerry.run import Run

COLOURS = {"supported": "green", "refuted": "bold red", "inconclusive": "yellow", "not applicable": "dim"}
_MOST, _EFFECTS = 10, 14
_BLOCKS = "▁▂▃▄▅▆▇█"


def trace_terminal(run: Run | Trace, console: Console, *, report: Path | str | None = None) -> None:
    """Print a trace.

    Args:
        run: A run that holds a trace, or the trace.
        console: Where to print; its width, colour and encoding are respected.
        report: Path of the HTML report, if one was written.
    """
    trace = run if isinstance(run, Trace) else from_run(run)
    blocks = (console.encoding or "").lower().startswith("utf")
    console.print(trace_view(trace, report=report, blocks=blocks))


def trace_view(trace: Trace, *, report: Path | str | None = None, blocks: bool = True) -> RenderableType:
    """The same as one rich renderable; `blocks`: whether bars of block characters may be shown."""
    parts: list[RenderableType] = [Text.assemble(("skerry trace ", "bold"), f.tidy(trace.model)), Text()]
    if not trace.traced:
        return Stack(*parts, Text("The outliers of this run were not traced; `skerry trace` does."))
    for words in origin_paragraphs(trace):
        parts += [Text(words), Text()]
    if trace.carriers:
        parts += [carriers_table(trace, blocks=blocks), Text()]
    # The table tells the numbers of the effects; without it the sentence does.
    table = effects_table(trace)
    parts += [table] if table is not None else []
    for words in (effect_words(trace) if table is None else dose_words(trace), role_words(trace)):
        parts += [Text(words), Text()] if words else []
    parts += [Text(f"Note: {f.tidy(n)}", style="dim") for n in trace.notes]
    if report is not None:
        parts.append(Text.assemble(("Report  ", "bold"), f.tidy(str(report)), overflow="fold"))
    return Stack(*parts)


def _table(*columns: tuple[str, bool]) -> Table:
    """An open table; a column is its name and whether it holds numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table


def carriers_table(trace: Trace, *, blocks: bool = True) -> Table:
    """One line for every outlier: birth, writer, peak, end; and its course through the blocks as a bar of characters."""
    table = _table(
        ("Channel", True),
        ("Born", True),
        ("Written by", False),
        ("Peak", True),
        ("Ends", True),
        *([("By block", False)] if blocks else []),
    )
    for c in trace.carriers[:_MOST]:
        birth = "embed" if c["birth_layer"] is None else str(c["birth_layer"])
        leaving = "stays" if c["exit_layer"] is None else str(c["exit_layer"])
        cells = [str(c["channel"]), birth, _writer(trace, c), f.number(c["peak"]), leaving]
        table.add_row(*(Text(t) for t in (*cells, *([_course(trace, c)] if blocks else []))))
    if len(trace.carriers) > _MOST:
        table.caption = f"{len(trace.carriers) - _MOST} more in the run"
    return table


def _writer(trace: Trace, c: Row) -> str:
    """The part with the largest share, and its neuron or head where one alone carries most."""
    terms = trace.writers(c["carrier"], "birth")
    if not terms:
        return "–" if c["birth_layer"] is not None else "embedding"
    unit = trace.unit(c["carrier"])
    named = unit is not None and unit["index"] is not None and known(unit["share"])
    one = (
        f", {'neuron' if unit['unit'] == 'weight' else unit['unit']} {unit['index']} {f.percent(unit['share'])}"
        if unit is not None and named
        else ""
    )
    return f"{part_name(terms[0]['part'])} {signed_percent(terms[0]['share'])}{one}"


def _course(trace: Trace, c: Row, *, most: int = 24) -> str:
    """Size at its tokens by block, logarithmic from a thousandth of the largest; the largest of neighbours where blocks share a letter."""
    sizes = [
        abs(r["value"]) if r is not None and known(r["value"]) else 0.0
        for n in range(trace.num_layers)
        for r in [trace.life(c["carrier"], n, "resid.out")]
    ]
    top = max(sizes, default=0.0)
    if not top:
        return ""
    pool = -(-len(sizes) // most)
    pooled = [max(sizes[i : i + pool]) for i in range(0, len(sizes), pool)]
    steps = (max(0.0, 1 + math.log10(max(v / top, 1e-9)) / 3) for v in pooled)
    return "".join(_BLOCKS[min(7, int(s * 7.999))] for s in steps)


def effects_table(trace: Trace) -> Table | None:
    """Effects on the loss (or what stands for it) and on the sink mass, with intervals and the controls; None without any."""
    outcomes = [o for o in (trace.damage, "sink mass") if o is not None]
    rows = strongest([r for o in outcomes for r in trace.effects(None, o) if r["group"] != "dose"])
    if not rows:
        return None
    table = _table(
        ("Intervention", False), ("Outcome", False), ("Change [95 % interval]", True), ("Controls", True)
    )
    for r in rows[:_EFFECTS]:
        place = "" if r["outcome_layer"] is None else f", block {r['outcome_layer']}"
        grey = [x["change"] for x in controls(trace, r)]
        null = f"{f.number(min(grey), digits=2)} to {f.number(max(grey), digits=2)}" if grey else "–"
        cells = (
            f"{f.tidy(r['group'] or '')}: {f.tidy(r['arm'] or '')}",
            f"{r['outcome']}{place}",
            f"{f.number(r['change'])}{interval(r)}",
            null,
        )
        table.add_row(*(Text(t) for t in cells))
    if len(rows) > _EFFECTS:
        table.caption = f"{len(rows) - _EFFECTS} more in the run's table effects"
    return table


def claims_terminal(results: Sequence[Any], console: Console, *, report: Path | str | None = None) -> None:
    """Print the verdicts.

    Args:
        results: Results of claims, as objects with `model_dump` or as mappings.
        console: Where to print.
        report: Path of the HTML report, if one was written.
    """
    console.print(claims_view(results, report=report))


def claims_view(results: Sequence[Any], *, report: Path | str | None = None) -> RenderableType:
    """The same as one rich renderable."""
    rows = [plain(r) for r in results]
    parts: list[RenderableType] = [Text(claim_words(rows) or "No claim was judged."), Text()]
    if rows:
        table = _table(
            ("Claim", False),
            ("Verdict", False),
            ("Statement, and why", False),
            ("Effect [95 % interval]", True),
        )
        for r in rows:
            verdict = f.tidy(str(r["verdict"]))
            told = Text(f.tidy(str(r.get("statement") or "")))
            told.append(f"\n{f.tidy(str(r.get('why') or ''))}", style="dim")
            effect = f"{f.number(r['effect'])}{interval(r)}" if r.get("effect") is not None else "–"
            table.add_row(
                Text(f.tidy(str(r["id"]))),
                Text(f"{MARKS.get(verdict, '?')} {verdict}", style=COLOURS.get(verdict, "")),
                told,
                Text(effect),
            )
        parts += [table]
    if report is not None:
        parts += [Text.assemble(("Report  ", "bold"), f.tidy(str(report)), overflow="fold")]
    return Stack(*parts)


def claims_list(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The claims that there are: id, statement, source."""
    table = _table(("Claim", False), ("Statement", False), ("Source", False))
    for r in rows:
        table.add_row(*(Text(f.tidy(str(r.get(k) or "–"))) for k in ("id", "statement", "source")))
    return table
