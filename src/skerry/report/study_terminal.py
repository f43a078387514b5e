"""A study on a terminal: what each variant gives beside the baseline. Fits 80 columns."""

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
from .study_functions import functions_table
from .study_words import COLUMNS, cell, compressed_names, headline, lookup, versus


def study_terminal(
    document: Mapping[str, Any], console: Console, *, report: Path | str | None = None
) -> None:
    """Print what a study found.

    Args:
        document: Of the study.
        console: Where to print; its width, colour and encoding are respected.
        report: Path of the HTML report, if one was written.
    """
    console.print(study_view(document))
    lines = [("Report  ", report), ("Study   ", document["run"])]
    for name, place in lines:
        if place is not None:
            console.print(Text.assemble((name, "bold"), f.tidy(str(place)), overflow="fold"))


def study_view(document: Mapping[str, Any]) -> RenderableType:
    """The same as one rich renderable."""
    parts: list[RenderableType] = [Text.assemble(("skerry study ", "bold"), document["study"]), Text()]
    for size in document["sizes"]:
        parts += [Text(line) for line in headline(document, size)]
        parts += [Text(), _table(document, size, COLUMNS, f"{size}: the decoders")]
        parts.append(_beside(document, size))
        if names := compressed_names(document, size):
            parts.append(
                _table(
                    document,
                    size,
                    [(f"change {n}", n) for n in names],
                    f"{size}: rise of the loss when compressed",
                )
            )
        if functions_table(document, size)[1]:
            parts.append(
                Text(
                    f"{size}: what the decoders can do is in the report and in the table study_battery",
                    style="dim",
                )
            )
    parts += [Text(f"Note: {n}", style="dim") for n in document["notes"]]
    return Stack(*parts)


def _table(document: Mapping[str, Any], size: str, columns: Sequence[tuple[str, str]], title: str) -> Table:
    table = _empty(title, [name for _, name in columns])
    for label in document["labels"]:
        cells = [cell(lookup(document, label, size, quantity)) for quantity, _ in columns]
        table.add_row(f.tidy(label), *cells, style="bold" if label == document["baseline"] else "")
    return table


def _beside(document: Mapping[str, Any], size: str) -> Table:
    columns = [
        ("loss", "loss"),
        ("loss_over_run", "whole run"),
        ("steps_to_baseline", "steps to its loss"),
        ("max_to_median", "max/median"),
        ("tokens_per_second", "speed"),
        ("parameters", "parameters"),
    ]
    table = _empty(
        f"{size}: beside {document['baseline']}, with 95 % intervals", [name for _, name in columns]
    )
    for label in document["labels"]:
        if label != document["baseline"]:
            rows = [lookup(document, label, size, quantity) for quantity, _ in columns]
            table.add_row(f.tidy(label), *(versus(row) for row in rows))
    return table


def _empty(title: str, heads: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=False,
    )
    table.add_column("variant", no_wrap=True)
    for name in heads:
        table.add_column(name, justify="right", overflow="fold")
    return table


def study_list(document: Mapping[str, Any]) -> RenderableType:
    """What can be studied."""
    parts: list[RenderableType] = []
    for name in ("studies", "presets", "variants"):
        table = Table(
            title=name,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            show_header=False,
        )
        for word, what in document[name].items():
            table.add_row(Text(word, style="bold"), Text(str(what)))
        parts.append(table)
    table = Table(
        title="sizes",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_header=False,
    )
    for word, shape in document["sizes"].items():
        told = ", ".join(f"{k} {v:,}" for k, v in shape.items())
        table.add_row(Text(word, style="bold"), Text(told))
    return Stack(*parts, table)
