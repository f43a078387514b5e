"""Axes that hold a cost of 0.001 and one of 10 in one picture, and the marks that are drawn on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from . import charts
from . import formatting as f

SERIES = 8
"""Line styles that can be told apart; more are drawn with the last."""
# A shape for each series, so that nothing hangs on colour.
SHAPES = (
    "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0",
    "M-3.4,-3.4h6.8v6.8h-6.8z",
    "M0,-4.6l4.4,7.8h-8.8z",
    "M0,4.6l4.4,-7.8h-8.8z",
    "M0,-4.8l4.4,4.8l-4.4,4.8l-4.4,-4.8z",
    "M-4,-1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
    "M-4.2,-1.6h8.4v3.2h-8.4z",
    "M-1.6,-4.2h3.2v8.4h-3.2z",
)


_APART = 34.0
"""Units of the drawing between the names of two ticks."""


class Axis(NamedTuple):
    """A scale with its ticks.

    Attributes:
        at: Value to place in the drawing.
        ticks: Values that are named.
        is_linear: Whether equal steps are equal lengths.
    """

    at: Callable[[float | int], float]
    ticks: list[float]
    is_linear: bool


def symlog(values: Iterable[float | int | None], start: float | int, end: float | int) -> Axis:
    """A scale that is linear about 0 and logarithmic beyond: sign(v) asinh(|v| / t), with t a few decades below the largest |v|.

    Zero is always on it. Values within a factor of 20 of each other get a linear scale.
    """
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    sizes = [abs(v) for v in known if v]
    top = max(sizes, default=1.0)
    small = min(sizes, default=top)
    low, high = min([0.0, *known]), max([0.0, *known])
    if top <= 20 * small or high - low <= 0:
        room = (high - low) * 0.05 or 1.0
        a, b = low - room * (low < 0), high + room * (high > 0 or low == 0)
        from .effect_charts import round_ticks

        return Axis(
            lambda v: start + (v - a) / (b - a) * (end - start),
            [float(t) for t in round_ticks(a, b, 5)],
            True,
        )
    # Three decades at most: smaller values are as good as zero beside the largest.
    bend = 10.0 ** math.floor(math.log10(max(small, top / 1e3)))
    place = lambda v: math.asinh(v / bend)  # noqa: E731
    a, b = place(low), place(high)
    room = (b - a) * 0.04
    a, b = a - room * (low < 0), b + room
    return Axis(
        lambda v: start + (place(v) - a) / (b - a) * (end - start),
        _ticks(low, high, bend, (b - a) * max(1 / 9, _APART / max(1.0, abs(end - start)))),
        False,
    )


def _ticks(low: float | int, high: float | int, bend: float | int, gap: float | int) -> list[float]:
    powers = [bend * 10.0**k for k in range(12)]
    both = [0.0, *(p for p in powers if p <= high), *(-p for p in powers if -p >= low)]
    ticks: list[float] = []
    for t in sorted(both, key=abs):
        if all(abs(math.asinh(t / bend) - math.asinh(u / bend)) > gap for u in ticks):
            ticks.append(t)
    return sorted(ticks)


def tick(t: float | int) -> str:
    """A tick as text."""
    return f.short_value(t)


def dot(x: float | int, y: float | int, series: int) -> str:
    """The mark of a series."""
    n = min(series, SERIES - 1)
    return f'<path class="m q{n}" d="{SHAPES[n]}" transform="translate({x:.1f},{y:.1f})"/>'


def short_name(words: str, limit: int) -> str:
    """A name on one line, without control characters, at most so many letters."""
    told = f.tidy(words)
    return told if len(told) <= limit else told[: limit - 1] + "…"


def path(points: Sequence[tuple[float | int, float | int]], series: int) -> str:
    """The line of a series."""
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="s q{min(series, SERIES - 1)}" points="{told}"/>'


def key(names: Sequence[str], y: float | int, width: float | int, body: list[str]) -> float:
    """Draw what each series is, wrapped to the width; the height behind it."""
    x, y = 0.0, float(y)
    for i, name in enumerate(names):
        label = short_name(name, 40)
        long = 26 + 6.1 * len(label)
        if x and x + long > width:
            x, y = 0.0, y + 16
        body += [dot(x + 5, y - 4, i), charts.text(x + 14, y, label, cls="t r")]
        x += long
    return y + 6


def rule(
    axis: Axis,
    *,
    x: tuple[float | int, float | int],
    y: tuple[float | int, float | int],
    body: list[str],
    vertical: bool,
) -> None:
    """Grid lines and names of the ticks: of a vertical axis at the left of `x`, of a horizontal one under `y`."""
    for t in axis.ticks:
        at, cls = axis.at(t), "g zero" if t == 0 else "g"
        if vertical:
            body += [
                charts.line(x[0], at, x[1], at, cls),
                charts.text(x[0] - 6, at + 4, tick(t), anchor="end"),
            ]
        else:
            body += [
                charts.line(at, y[0], at, y[1], cls),
                charts.text(at, y[1] + 14, tick(t), anchor="middle"),
            ]
