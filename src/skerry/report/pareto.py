"""The Pareto front as a picture: the first goal across, every other goal up, one panel each. SVG and PNG; marks carry classes, never colours.

Trials on the front are large, numbered, and joined in the panel's plane where no other trial of the front beats them there; all others are small.
The shape of a mark is the first field that was chosen among words (the attention, by default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skerry.redesign.pareto import pareto_front

from . import charts
from . import formatting as f
from .cost_axes import SHAPES, dot, key
from .figures import standalone, ticks
from .impact_figures import beside
from .lifecycle import picture
from .picture_files import FORMATS, write_pictures
from .trace_figures import picture_style

WIDTH, HEIGHT = 400.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 12.0, 26.0, 42.0
_APART = 14.0
"""Units of the drawing between two labels."""
_STYLE = (
    ".m.q0,.m.q4{{fill:{accent}}}.m.q1,.m.q5{{fill:{blue}}}.m.q2,.m.q6{{fill:{ink}}}.m.q3,.m.q7{{fill:{soft}}}"
    ".rest{{opacity:.35}}.edge{{fill:none;stroke:{soft};stroke-width:1.2;stroke-dasharray:4 3}}"
)


def write_pareto(
    document: Mapping[str, Any], folder: str | Path, formats: Sequence[str] = FORMATS, *, dark: bool = False
) -> list[Path]:
    """Write `pareto.svg` and `pareto.png`; nothing when no trial has numbers.

    Raises:
        UnknownOption: A format is none of these.
    """

    def draw() -> dict[str, str]:
        drawn = pareto_figure(document, dark=dark)
        return {"pareto": drawn} if drawn else {}

    return write_pictures(draw, folder, formats)


def pareto_figure(document: Mapping[str, Any], *, dark: bool = False) -> str:
    """All panels as one standalone SVG; empty when no trial has numbers."""
    from .figures import PALETTES

    if not any(t["values"] for t in document["trials"]):
        return ""
    first, *others = document["goals"]
    panels = [panel(document, first, goal) for goal in (others or [first])]
    count = sum(t["values"] is not None for t in document["trials"])
    sheet = beside(panels, title=f"{f.count(len(document['front']), 'point')} on the front of {count} trials")
    style = picture_style(dark=dark) + _STYLE.format(**PALETTES[dark])
    return standalone(sheet, dark=dark, style=style)


def panel(document: Mapping[str, Any], across: Mapping[str, Any], up: Mapping[str, Any]) -> str:
    """One goal against another, both better when smaller."""
    trials = [t for t in document["trials"] if t["values"]]
    names = series(document)
    at = np.array([[t["values"][across["name"]], t["values"][up["name"]]] for t in trials], dtype=float)
    x = _Scale(at[:, 0], _LEFT, WIDTH - _RIGHT)
    y = _Scale(at[:, 1], HEIGHT - _BOTTOM, _TOP)
    body = [charts.text(0, 12, f"{up['meaning']} ({up['unit']})", cls="t l")]
    for t in y.ticks:
        body += [
            charts.line(_LEFT, y(t), WIDTH - _RIGHT, y(t), "g"),
            charts.text(_LEFT - 6, y(t) + 4, f.short_value(t), anchor="end"),
        ]
    base = HEIGHT - _BOTTOM
    body += [charts.text(x(t), base + 15, f.short_value(t), anchor="middle") for t in x.ticks]
    words = f"{across['meaning']} ({across['unit']})"
    body.append(charts.text((_LEFT + WIDTH - _RIGHT) / 2, base + 32, words, anchor="middle", cls="t l"))
    edge = at[pareto_front(at)]
    stairs = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in edge[np.lexsort(edge.T[::-1])])
    body.append(f'<polyline class="edge" points="{stairs}"/>')
    # Labels lie under the marks: their halo would hide them.
    numbered = [(str(t["number"]), x(a), y(b)) for t, (a, b) in zip(trials, at, strict=True) if t["on_front"]]
    body += [charts.text(a + 8, b - 6, words, cls="n") for words, a, b in _together(numbered)]
    for trial, (a, b) in sorted(zip(trials, at, strict=True), key=lambda pair: pair[0]["on_front"]):
        place, kind = (x(a), y(b)), names.index(_series_of(document, trial))
        body.append(_large(*place, kind) if trial["on_front"] else dot(*place, kind).replace('"m', '"rest m'))
    height = key(names, HEIGHT + 8, WIDTH, body)
    told = "; ".join(
        f"trial {t['number']}: {f.number(a)}, {f.number(b)}"
        for t, (a, b) in zip(trials, at, strict=True)
        if t["on_front"]
    )
    title = f"{up['meaning']} against {across['meaning']}"
    return picture(body, width=WIDTH, height=height, title=title, description=told, cls="pareto")


def _large(x: float, y: float, kind: int) -> str:
    return dot(x, y, kind).replace(')"/>', ') scale(1.35)"/>')


def _together(marks: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Labels of marks that lie close together, as one label beside the first of them."""
    found: list[tuple[list[str], float, float]] = []
    for words, x, y in marks:
        near = next((m for m in found if abs(m[1] - x) < _APART and abs(m[2] - y) < _APART), None)
        if near is None:
            found.append(([words], x, y))
        else:
            near[0].append(words)
    return [(", ".join(words), x, y) for words, x, y in found]


def series(document: Mapping[str, Any]) -> list[str]:
    """What the marks tell apart, in order of appearance; at most as many as there are shapes."""
    found = list(dict.fromkeys(_series_of(document, t) for t in document["trials"] if t["values"]))
    return found if len(found) <= len(SHAPES) else ["trials"]


def _series_of(document: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    words = next(
        (
            name
            for name, values in document["space"].items()
            if isinstance(values, list) and all(isinstance(v, str) for v in values)
        ),
        None,
    )
    if words is None:
        return "trials"
    used = {t["chosen"].get(words) for t in document["trials"] if t["values"]}
    return "trials" if len(used) > len(SHAPES) else f.tidy(str(trial["chosen"].get(words)))


class _Scale:
    """A linear or, over more than a factor of 20, logarithmic axis."""

    def __init__(self, values: np.ndarray, start: float, end: float) -> None:
        low, high = float(values.min()), float(values.max())
        self.is_log = low > 0 and high / low > 20
        low, high = (math.log10(low), math.log10(high)) if self.is_log else (low, high)
        room = (high - low) * 0.06 or abs(low) * 0.05 or 1.0
        self.low, self.high, self.start, self.end = low - room, high + room, start, end
        self.ticks = (
            charts.decades(10**self.low, 10**self.high) if self.is_log else ticks(self.low, self.high, 5)
        )

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.is_log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)
