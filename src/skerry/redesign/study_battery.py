"""The functional battery of a study's arms as rows of the table `study_battery`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]


def battery_rows(result: Mapping[str, Any]) -> list[Row]:
    """The whole scores of one arm, without those along a curve; none where no battery was run.

    Args:
        result: Of the arm.
    """
    at = {name: result[name] for name in ("label", "size", "seed")}
    battery = result.get("battery") or {}
    return [
        {**at, **{name: score.get(name) for name in _COLUMNS}}
        for score in battery.get("scores", [])
        if score.get("place") is None
    ]


_COLUMNS = ("task", "measure", "value", "low", "high", "better", "chance")
