"""Which channels are the strongest, and since when: identity over time.

A channel belongs to the strongest at a step when a row of the monitor names it (`top_index`, eight by default). `since` is the first
step of the unbroken run that reaches the end; `share` the part of all steps at which it was named. In a new model the eight are drawn by
chance and change from step to step; a systematic outlier is named from its birth to the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Place = tuple[int | None, str, int | None]


def channel_rows(rows: Iterable[Mapping[str, Any]], series: str) -> list[dict[str, Any]]:
    """Rows of the table `birth_channels`: those that are the strongest at the last step, the longest-standing first.

    Args:
        rows: Rows of one training, as a monitor returns them.
        series: Its name.
    """
    places: dict[Place, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("top_index"):
            place = (row["layer"], row["site"], row.get("expert"))
            places.setdefault(place, {})[row["step"]] = row
    return [found for place, by_step in places.items() for found in _place(series, place, by_step)]


def _place(series: str, place: Place, by_step: dict[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    steps = sorted(by_step)
    named = {step: set(by_step[step]["top_index"]) for step in steps}
    last = by_step[steps[-1]]
    found = []
    for channel, size in zip(last["top_index"], last["top_size"], strict=True):
        at = [step for step in steps if channel in named[step]]
        since = next((s for s in reversed(steps) if channel not in named[s]), None)
        found.append(
            {
                "series": series,
                **dict(zip(("layer", "site", "expert"), place, strict=True)),
                "channel": channel,
                "since": at[0] if since is None else next(s for s in steps if s > since),
                "first": at[0],
                "share": len(at) / len(steps),
                "size": size,
            }
        )
    return sorted(found, key=lambda row: row["since"])
