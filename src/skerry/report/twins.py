"""Twins side by side: models that differ in their attention only; in the terminal and as a section of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import formatting as f
from .data import Tables
from .trace_sections import template

Row = Mapping[str, Any]
HEAD = ("Model", "Attention", "Loss", "Sink share", "Its value", "Max / median")


def twins_terminal(twins: Sequence[Row], costs: Sequence[Row]) -> RenderableType:
    """A sentence and a table, the model of the run first."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate([*HEAD, *_schemes(costs)]):
        # Heads break where words end, so that 80 columns hold the whole of every name.
        table.add_column(
            name.replace(" / ", "/").replace("/", "/\n").replace("-", "-\n").replace(" ", "\n"),
            justify="left" if i < 2 else "right",
            no_wrap=True,
        )
    for row in _rows(twins, costs):
        table.add_row(*(Text(cell) for cell in row))
    return Group(Text(words(twins, costs)), Text(), table)


def twins_section(tables: Tables) -> Markup:
    """The section as HTML; empty where no twins were measured."""
    if "twins" not in tables or not tables["twins"].num_rows:
        return Markup("")
    twins, costs = tables["twins"].to_pylist(), tables["twin_costs"].to_pylist()
    return Markup(
        template("twins.html.j2").render(
            words=words(twins, costs), head=[*HEAD, *_schemes(costs)], rows=_rows(twins, costs)
        )
    )


def words(twins: Sequence[Row], costs: Sequence[Row]) -> str:
    """What the comparison says, in sentences made of its numbers."""
    first, *others = twins
    losses = ", ".join(f"{t['model']} {_signed(t['loss'] - first['loss'])}" for t in others)
    text = (
        f"{first['model']} and its twins were trained alike and differ in their attention only. The strongest sink head gives the first token "
        f"{_each(twins, 'sink_share', f.percent)}; largest over median of the residual stream: {_each(twins, 'max_to_median', f.number)}. "
        f"Loss beside {first['model']}: {losses} nats."
    )
    schemes = _schemes(costs)
    if not schemes:
        return text
    last = schemes[-1]
    paid = [
        f"{c['model']} {_signed(c['change'])}"
        for c in costs
        if c["scheme"] == last and c["change"] is not None
    ]
    return f"{text} Rounding to {last} costs {', '.join(paid)} nats. One training each: `skerry study attention` says what holds over seeds."


def _each(twins: Sequence[Row], name: str, told: Callable[[float], str]) -> str:
    """One number of every model; one that a model lacks is left out."""
    return ", ".join(
        f"{told(t[name])} in {t['model']} ({t['attention']})" for t in twins if t[name] is not None
    )


def _schemes(costs: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(c["scheme"] for c in costs if c["change"] is not None))


def _rows(twins: Sequence[Row], costs: Sequence[Row]) -> list[list[str]]:
    paid = {(c["model"], c["scheme"]): c["change"] for c in costs}
    return [
        [
            f.tidy(t["model"]),
            f.tidy(t["attention"]),
            f"{t['loss']:.3f}",
            f.percent(t["sink_share"]) if t["sink_share"] is not None else "",
            f"{t['sink_value']:.2f}" if t["sink_value"] is not None else "",
            f.number(t["max_to_median"]),
            *(_signed(paid.get((t["model"], scheme))) for scheme in _schemes(costs)),
        ]
        for t in twins
    ]


def _signed(x: float | None) -> str:
    return "" if x is None else f"{x:+.3f}"
