"""The functional battery on a terminal: a table per task, the curves below it, and what does not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from . import formatting as f

Row = Mapping[str, Any]
# Curves that are drawn: what reads best of each task.
CURVES = {"retrieval": "accuracy", "labels": "accuracy", "linear": "accuracy", "recall": "loss"}
_VERDICTS = {"better": "green", "worse": "red"}
_SIDES = {"better": {"higher": "above", "lower": "below"}, "worse": {"higher": "below", "lower": "above"}}


def battery_terminal(document: Mapping[str, Any], console: Console) -> None:
    """Print what the models gave.

    Args:
        document: Of `skerry battery --json`.
        console: Where to print; its width, colour and encoding are respected.
    """
    console.print(battery_view(document))


def battery_view(document: Mapping[str, Any]) -> RenderableType:
    """The same as one rich renderable."""
    batteries: Sequence[Row] = document["batteries"]
    parts: list[RenderableType] = [Text.assemble(("skerry battery ", "bold"), f.listing(_names(batteries)))]
    parts += [Text(line, style="dim") for line in _facts(batteries)]
    for task, told in document["tasks"].items():
        if any(score["task"] == task for b in batteries for score in b["scores"]):
            parts += [Text(), Text.assemble((task, "bold"), f"  {told['what']}")]
            parts += [_table(task, batteries, document["comparisons"]), *_curves(task, batteries)]
    for b in batteries:
        for task, why in b["skipped"].items():
            parts.append(Text(f"{f.tidy(b['name'])}: {task} not applicable: {f.tidy(why)}", style="yellow"))
    parts += [Text(f"Note: {note}", style="dim") for note in _notes(batteries)]
    if document["comparisons"]:
        parts.append(Text(_beside(document["comparisons"]), style="dim"))
    return Stack(*parts)


def _names(batteries: Sequence[Row]) -> list[str]:
    return [f.tidy(b["name"]) for b in batteries]


def _facts(batteries: Sequence[Row]) -> list[str]:
    lines = []
    for b in batteries:
        size = f.short(b["num_parameters"])
        took = f.seconds(sum(b["seconds"].values()))
        lines.append(
            f"{f.tidy(b['name'])}: {size} parameters, {b['vocab']:,} tokens, trained on {b['training_length']:,} at once; "
            f"{f.tidy(b['text'])}; seed {b['seed']}; {took}"
        )
    return lines


def _notes(batteries: Sequence[Row]) -> list[str]:
    """Each note once, with the models that have it where not all do."""
    owners: dict[str, list[str]] = {}
    for b in batteries:
        for note in b["notes"]:
            owners.setdefault(f.tidy(note), []).append(f.tidy(b["name"]))
    return [
        note if len(names) == len(batteries) else f"{f.listing(names)}: {note}"
        for note, names in owners.items()
    ]


def _beside(comparisons: Sequence[Row]) -> str:
    rows = [d for c in comparisons for d in c["differences"] if d["place"] is None]
    pairs = (
        "on the same inputs, in pairs"
        if all(d["is_paired"] for d in rows)
        else "where inputs differ, not in pairs"
    )
    return (
        f"better and worse are differences from {f.tidy(comparisons[0]['a'])} {pairs}: the 95 % interval holds no 0. Of "
        f"{len(rows)} rows about {f.number(len(rows) / 20, digits=1)} would stand apart by chance."
    )


def _table(task: str, batteries: Sequence[Row], comparisons: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    table.add_column("Measure", overflow="fold", max_width=34 if len(batteries) == 1 else 28)
    for name in _names(batteries):
        table.add_column("Value" if len(batteries) == 1 else name, overflow="fold")
    measures: dict[str, Row] = {}
    for b in batteries:
        for score in _whole(b, task).values():
            measures.setdefault(score["measure"], score)
    for measure, told in measures.items():
        cells = [
            _cell(_whole(b, task).get(measure), _difference(b, task, measure, comparisons)) for b in batteries
        ]
        arrow = "↑" if told["better"] == "higher" else "↓"
        table.add_row(Text(f"{told['what']} {arrow}"), *cells)
    return table


def _whole(battery: Row, task: str) -> dict[str, Row]:
    return {s["measure"]: s for s in battery["scores"] if s["task"] == task and s["place"] is None}


def _difference(battery: Row, task: str, measure: str, comparisons: Sequence[Row]) -> Row | None:
    rows = next((c["differences"] for c in comparisons if c["b"] == battery["name"]), ())
    return next((d for d in rows if (d["task"], d["measure"], d["place"]) == (task, measure, None)), None)


def _cell(score: Row | None, difference: Row | None) -> Text:
    if score is None:
        return Text("–")
    text = Text(_number(score))
    if standing := standing_words(score):
        text.append(f"\n{standing}", style="dim")
    if difference is not None:
        verdict = str(difference["verdict"])
        told = verdict if verdict == "too few inputs" else f"{verdict}: {_signed(difference)}"
        text.append(f"\n{told}", style=_VERDICTS.get(verdict, ""))
    return text


def standing_words(score: Row) -> str:
    """Where a score stands from its level: `at chance`, `above chance`, with what gives that level."""
    if score["chance"] is None or score["standing"] is None:
        return ""
    level = f"{f.number(score['chance'])}, {score['chance_is']}"
    if score["standing"] == "at":
        return f"at chance ({level})" if _is_guess(score) else f"at {level}"
    side = _SIDES[score["standing"]][score["better"]]
    return f"{side} chance ({level})" if _is_guess(score) else f"{side} {level}"


def _is_guess(score: Row) -> bool:
    return "guess" in score["chance_is"]


def _number(score: Row) -> str:
    if score["low"] is None or score["high"] is None:
        return f.number(score["value"])
    return f"{f.number(score['value'])} [{f.number(score['low'])}, {f.number(score['high'])}]"


def _signed(d: Row) -> str:
    plus = "+" if (d["difference"] or 0) > 0 else ""
    return f"{plus}{f.number(d['difference'])} [{f.number(d['low'])}, {f.number(d['high'])}]"


def _curves(task: str, batteries: Sequence[Row]) -> list[Text]:
    lines = []
    for b in batteries:
        points = [
            s
            for s in b["scores"]
            if s["task"] == task and s["measure"] == CURVES.get(task) and s["place"] is not None
        ]
        if points:
            told = "  ".join(f"{_place(s['place'])}: {f.number(s['value'], digits=2)}" for s in points)
            who = "" if len(batteries) == 1 else f"{f.tidy(b['name'])}, "
            lines.append(Text(f"{who}{points[0]['measure']} by {points[0]['place']['along']}  {told}"))
        for row in b["tables"].get("best_head", ()) if task == "induction" else ():
            who = "" if len(batteries) == 1 else f"{f.tidy(b['name'])}, "
            lines.append(
                Text(
                    f"{who}best head: layer {row['layer']}, head {row['head']}; {row['num_above']} of {row['num_heads']} heads give the "
                    f"token to copy more than {row['bar']}"
                )
            )
    return lines


def _place(place: Row) -> str:
    return f"{place['first']}" if place["first"] == place["last"] else f"{place['first']}–{place['last']}"
