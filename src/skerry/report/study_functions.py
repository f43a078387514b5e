"""The functional battery of a study as a table: a row for each score, a column for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skerry.redesign.study_battery import battery_rows

from . import formatting as f

CAPTION = (
    "What the decoders can do, mean over seeds, smallest and largest seed in brackets; the arrow is the better direction. "
    "A score at chance compares nothing."
)
Row = Mapping[str, Any]


def functions_table(document: Mapping[str, Any], size: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows; no rows where the battery was not run.

    Args:
        document: Of the study.
        size: Whose decoders.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    first: dict[tuple[str, str], Row] = {}
    arms = (arm for arm in document.get("batteries", ()) if arm["size"] == size)
    for score in (row for arm in arms for row in battery_rows(arm) if row["value"] is not None):
        name = (score["task"], score["measure"])
        first.setdefault(name, score)
        found.setdefault(name, {}).setdefault(score["label"], []).append(score["value"])
    labels: Sequence[str] = document["labels"]
    head = ["Task", "Score", "Chance", *(f.tidy(x) for x in labels)]
    return head, [
        [
            task,
            f"{f.tidy(measure)} {'↑' if first[task, measure]['better'] == 'higher' else '↓'}",
            f.number(first[task, measure]["chance"]),
            *(_told(values.get(label, [])) for label in labels),
        ]
        for (task, measure), values in found.items()
    ]


def _told(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f.number(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} [{f.number(min(values))}, {f.number(max(values))}]"
