"""A search on a terminal: the trials that no other beats, what was chosen in them, and the command that trains each again. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from . import formatting as f

_FAILED = 5
_SHORT = {"quantization": "noise", "scheme": "", "weight": ""}


def pareto_terminal(document: Mapping[str, Any], console: Console, *, figures: Sequence[Path] = ()) -> None:
    """Print a finished search.

    Args:
        document: What `skerry optimize --json` prints.
        console: Where to print; its width, colour and encoding are respected.
        figures: Files of the picture, if it was drawn.
    """
    console.print(pareto_view(document, figures=figures))


def pareto_view(document: Mapping[str, Any], *, figures: Sequence[Path] = ()) -> RenderableType:
    """The same as one rich renderable."""
    base, trials = document["base"], document["trials"]
    failed = [t for t in trials if t["values"] is None]
    size = f"{document['parameters'] / 1e6:.2f} million parameters, {document['tokens_per_training'] / 1e6:.2f} million tokens each"
    seeds = "" if document["seeds"] == 1 else f", mean of {document['seeds']} seeds"
    parts: list[RenderableType] = [
        Text.assemble(("skerry optimize ", "bold"), ", ".join(g["name"] for g in document["goals"])),
        Text(
            f"{f.count(len(trials), 'trial')} of {base['layers']} layers, {base['width']} wide, {base['steps']} steps: {size}{seeds}",
            style="dim",
        ),
        *(Text(f"{g['name']}: {g['meaning']}, {g['unit']}", style="dim") for g in document["goals"]),
        Text(),
    ]
    if document["front"]:
        parts += [
            Text("No other trial is as good in every goal and better in one", style="bold"),
            front_table(document),
        ]
        if document["seeds"] == 1:
            parts.append(
                Text(
                    "One seed each: differences of a few thousandths are chance; --seeds 3 tells.",
                    style="dim",
                )
            )
        parts += [Text(), Text("Train a point again, longer or with more seeds", style="bold")]
        by_number = {t["number"]: t for t in trials}
        parts += [Text(f"  {f.tidy(by_number[n]['command'])}", overflow="fold") for n in document["front"]]
    else:
        parts.append(Text("No trial has numbers.", style="bold red"))
    parts += [
        Text(f"trial {t['number']} failed: {f.tidy(t['reason'] or 'no reason told')}", style="yellow")
        for t in failed[:_FAILED]
    ]
    if len(failed) > _FAILED:
        parts.append(Text(f"{f.count(len(failed) - _FAILED, 'more failure')} in the run", style="yellow"))
    parts.append(Text())
    for i, path in enumerate(figures):
        label = "Picture  " if i == 0 else "         "
        parts.append(Text.assemble((label, "bold"), f.tidy(str(path)), overflow="fold"))
    parts.append(Text.assemble(("Run      ", "bold"), f.tidy(str(document["run"])), overflow="fold"))
    return Stack(*parts)


def front_table(document: Mapping[str, Any]) -> Table:
    """The front, and the first trial, which is where the search began, under it where it is not on it."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    table.add_column("Trial", justify="right", no_wrap=True)
    for goal in document["goals"]:
        table.add_column(goal["name"], justify="right", no_wrap=True)
    table.add_column("Chosen", overflow="fold")
    by_number = {t["number"]: t for t in document["trials"]}
    shown = [by_number[n] for n in document["front"]]
    start = by_number.get(0)
    if start is not None and start["values"] and not start["on_front"]:
        shown.append(start)
    best = {g["name"]: min(t["values"][g["name"]] for t in shown) for g in document["goals"]}
    for t in shown:
        cells = [Text(str(t["number"]))]
        for name, least in best.items():
            value = t["values"][name]
            cells.append(Text(f.number(value, digits=4), style="bold" if value == least else ""))
        note = "" if t["on_front"] else "where it began: "
        cells.append(Text(note + chosen_words(t["chosen"])))
        table.add_row(*cells, style="" if t["on_front"] else "dim")
    return table


def chosen_words(chosen: Mapping[str, Any]) -> str:
    """What was chosen, without what was left off."""
    told = []
    for name, value in chosen.items():
        if value in (0, None, "w16a16"):
            continue
        short = " ".join(filter(None, (_SHORT.get(w, w) for w in name.split(".") if w != "objective")))
        is_word = isinstance(value, str) and short in ("attention", "optimiser", "norm", "feed_forward")
        shown = f"{value:.2g}" if isinstance(value, float) else str(value)
        told.append(f.tidy(shown if is_word else f"{short.replace('_', ' ')} {shown}"))
    return ", ".join(told) or "nothing"
