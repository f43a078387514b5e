"""Taming on a terminal: what was tried and chosen, the proof, what was left alone, where the export is. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from . import formatting as f
from .impact_data import FLOAT, UNITS, Costs, change, costs_from_run, costs_from_tables
from .tame_sections import equal_line, export_lines, method_name, method_words, overhead_line, skipped_lines
from .trace_data import Row, known

if TYPE_CHECKING:
    from skerry.run import Run

_SKIPPED, _NOTES = 6, 6
# One more column, of what the model is judged by beside its damage.
_SECOND = (("perplexity", "Perplexity"), ("cosine", "Cosine"))


def tame_terminal(
    told: Mapping[str, Any] | Run | Costs,
    console: Console,
    *,
    export: Path | str | None = None,
    report: Path | str | None = None,
) -> None:
    """Print what taming did.

    Args:
        told: The document of `skerry tame`, a run that holds one, or the rows.
        console: Where to print; its width, colour and encoding are respected.
        export: Path of the export, where the document does not say it.
        report: Path of the HTML report, if one was written.
    """
    console.print(tame_view(costs_of(told), export=export))
    if report is not None:
        console.print(Text.assemble(("Report  ", "bold"), f.tidy(str(report)), overflow="fold"))


def costs_of(told: Mapping[str, Any] | Run | Costs) -> Costs:
    """The rows of a document or a run."""
    if isinstance(told, Costs):
        return told
    return costs_from_tables({}, document=told) if isinstance(told, Mapping) else costs_from_run(told)


def tame_view(costs: Costs, *, export: Path | str | None = None) -> RenderableType:
    """The same as one rich renderable."""
    parts: list[RenderableType] = [Text.assemble(("skerry tame ", "bold"), costs.model), Text()]
    if not costs.tamed:
        return Stack(*parts, Text("This run tamed nothing; `skerry tame` does."))
    for words in method_words(costs):
        parts += [Text(words), Text()]
    if any(costs.methods.values()):
        parts += [methods_table(costs)]
    parts += [
        Text(f"{f.tidy(r['method'])} could not be run: {f.tidy(r['note'] or 'no number')}", style="yellow")
        for r in costs.refused
    ]
    for good, line in map(equal_line, costs["equivalence"]):
        parts.append(
            Text.assemble(
                ("same function  " if good else "NOT THE SAME  ", "green" if good else "bold red"), line
            )
        )
    parts += [Text.assemble(("run time  ", "bold"), overhead_line(r)) for r in costs["overhead"]]
    skipped = skipped_lines(costs)
    if skipped:
        parts += [Text(), Text("Left alone", style="bold"), *(Text(line) for line in skipped[:_SKIPPED])]
        if len(skipped) > _SKIPPED:
            parts.append(Text(f"{f.count(len(skipped) - _SKIPPED, 'more reason')} in the run", style="dim"))
    notes = [n for n in costs.tame_notes if not any(n in line for line in skipped)]
    parts += [Text(f"Note: {n}", style="dim") for n in notes[:_NOTES]]
    if len(notes) > _NOTES:
        parts.append(Text(f"{f.count(len(notes) - _NOTES, 'more note')} in the run's tame.json", style="dim"))
    lines = export_lines(costs)
    if not lines and export is not None:
        lines = [f.tidy(str(export))]
    for i, line in enumerate(lines):
        parts.append(Text.assemble(("Export  " if i == 0 else "        ", "bold"), line, overflow="fold"))
    if costs.document.get("run"):
        parts.append(Text.assemble(("Run     ", "bold"), f.tidy(str(costs.document["run"])), overflow="fold"))
    return Stack(*parts)


def methods_table(costs: Costs) -> Table:
    """Every method under every scheme, fewest bits last, cheapest damage first."""
    rows = [r for s in costs.schemes for found in costs.methods[s].values() for r in found]
    second = next(((k, name) for k, name in _SECOND if any(known(r[k]) for r in rows)), None)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    heads = ["Scheme", "Method", f"Change of the {costs.damage}", *([second[1]] if second else []), "Time"]
    for i, name in enumerate(heads):
        table.add_column(name, justify="right" if i > 1 else "left", no_wrap=i > 1, overflow="fold")
    for scheme in costs.schemes:
        name = "not quantized" if scheme == FLOAT else f.tidy(scheme)
        found: list[Row] = sorted(
            (r for rows in costs.methods[scheme].values() for r in rows), key=lambda r: r["change"]
        )
        for i, r in enumerate(found):
            cells = [name if i == 0 else "", method_name(r), change(r)]
            cells += [f.number(r[second[0]], digits=4)] if second else []
            cells.append(f.seconds(r["seconds"]) if known(r["seconds"]) else "–")
            table.add_row(*(Text(c) for c in cells), style="bold" if r["chosen"] else "")
    table.caption = UNITS[costs.damage]
    return table
