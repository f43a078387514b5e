"""The figure of a claim from its specification: `kind`, `x`, `y`, and perhaps `low`, `high`, `series`, titles.

Kinds are bars, lines, points and intervals; another kind is drawn as points. A point without a number is left out and counted.
Names (channels, sites, tokens) on the horizontal axis become rows, so that they can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import charts
from . import formatting as f
from .effect_charts import linear, round_ticks
from .lifecycle import picture, wrap
from .trace_data import known

WIDTH = 400.0
MOST_ROWS = 24
_MARKS = ("a", "b", "c")


class Point(NamedTuple):
    """One point of a figure."""

    x: Any
    y: float | int
    low: float | int | None
    high: float | int | None
    series: str


def points(spec: Mapping[str, Any]) -> list[Point]:
    """The points that can be drawn."""
    xs, ys = list(spec.get("x") or []), list(spec.get("y") or [])
    columns = [_column(spec.get(k), len(ys)) for k in ("low", "high", "series")]
    rows = zip(xs, ys, *columns, strict=False)
    return [
        Point(x, float(y), _number(low), _number(high), "" if series is None else str(series))
        for x, y, low, high, series in rows
        if isinstance(y, int | float) and known(y) and x is not None
    ]


def _column(values: Any, length: int) -> list[Any]:
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == length:
        return list(values)
    return [values if isinstance(values, str) else None] * length


def _number(x: Any) -> float | int | None:
    return float(x) if isinstance(x, int | float) and known(x) else None


def figure(spec: Mapping[str, Any] | None) -> str:
    """The figure as an SVG element; nothing when it holds no number."""
    found = points(spec) if spec else []
    if spec is None or not found:
        return ""
    lost = len(list(spec.get("y") or [])) - len(found)
    numeric = all(isinstance(p.x, int | float) and not isinstance(p.x, bool) and known(p.x) for p in found)
    draw = _numeric if numeric and not _is(spec, "bar") else _named
    body, height = draw(spec, found)
    if lost > 0:
        height += 16
        body.append(charts.text(0, height - 4, f"{f.count(lost, 'point')} without a number left out"))
    told = "; ".join(
        f"{f.tidy(str(p.x))}{f' ({f.tidy(p.series)})' if p.series else ''}: {f.number(p.y)}"
        for p in found[:40]
    )
    return picture(body, width=WIDTH, height=height, title=_title(spec), description=told, cls="spec")


def _title(spec: Mapping[str, Any]) -> str:
    return f.tidy(str(spec.get("title") or ""))


def _is(spec: Mapping[str, Any], kind: str) -> bool:
    return str(spec.get("kind") or "").startswith(kind)


def _text(spec: Mapping[str, Any], key: str) -> str:
    return f.tidy(str(spec.get(key) or ""))


def _names(found: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(p.series for p in found))


def _heading(spec: Mapping[str, Any], found: Sequence[Point], body: list[str]) -> float | int:
    """Title and, where there are several series, their key; the height that is used."""
    y = 12.0
    for part in wrap(_title(spec), 60)[:2]:
        body.append(charts.text(0, y, part, cls="ct"))
        y += 16
    names = _names(found)
    if len(names) > 1:
        x = 0.0
        for i, name in enumerate(names[:6]):
            label = f.visible(name)
            if x + 24 + 6 * len(label) > WIDTH and x:
                x, y = 0.0, y + 15
            body += [_dot(x + 5, y - 4, i), charts.text(x + 13, y, label)]
            x += 24 + 6 * len(label)
        y += 15
    return y


def _dot(x: float | int, y: float | int, series: int) -> str:
    shapes = ("M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0", "M-3.5,-3.5h7v7h-7z", "M0,-4.5l4.5,8h-9z")
    return f'<path class="m {_MARKS[series % 3]}" d="{shapes[series % 3]}" transform="translate({x:.1f},{y:.1f})"/>'


def _named(spec: Mapping[str, Any], found: list[Point]) -> tuple[list[str], float | int]:
    """One row for each name: a bar from zero (or a point), its interval, its number."""
    body: list[str] = []
    y = _heading(spec, found, body) + 2
    shown, names = found[:MOST_ROWS], _names(found)
    label = min(150.0, 12 + 6.1 * max(len(f.visible(str(p.x))) for p in shown))
    values = [v for p in shown for v in (p.y, p.low, p.high) if v is not None]
    x, ticks = linear(values, label + 6, WIDTH - 56)
    top, before = y, None
    for p in shown:
        series = names.index(p.series)
        if p.x != before:
            body.append(
                charts.text(label, y + 12, f.visible(str(p.x), limit=int(label / 6)), cls="n", anchor="end")
            )
        before = p.x
        if _is(spec, "bar"):
            a, b = sorted((x(0), x(p.y)))
            body.append(
                f'<rect class="m {_MARKS[series % 3]} soft" x="{a:.1f}" y="{y + 2:.1f}" width="{max(1.0, b - a):.1f}" height="12"/>'
            )
        if p.low is not None and p.high is not None:
            body.append(charts.line(x(p.low), y + 8, x(p.high), y + 8, "whisker"))
        if not _is(spec, "bar"):
            body.append(_dot(x(p.y), y + 8, series))
        body.append(charts.text(WIDTH, y + 12, f.number(p.y), cls="v", anchor="end"))
        y += 19
    body.append(charts.line(x(0), top, x(0), y, "g zero"))
    body += [charts.text(x(t), y + 13, f.short_value(t), anchor="middle") for t in ticks]
    body.append(
        charts.text((label + WIDTH - 50) / 2, y + 29, _text(spec, "y_title"), anchor="middle", cls="t l")
    )
    if len(found) > MOST_ROWS:
        y += 15
        body.append(charts.text(0, y + 29, f"{len(found) - MOST_ROWS} more rows not shown"))
    return body, y + 36


def _numeric(spec: Mapping[str, Any], found: list[Point]) -> tuple[list[str], float | int]:
    """Lines or points over a numeric axis."""
    body: list[str] = []
    top = _heading(spec, found, body) + (14 if spec.get("y_title") else 0)
    height, left, bottom = top + 190, 52.0, 44.0
    values = [v for p in found for v in (p.y, p.low, p.high) if v is not None]
    y, ticks = linear(values, height - bottom, top)
    x, across = _across([float(p.x) for p in found], left + 8, WIDTH - 12)
    body.append(charts.text(0, top - 5, _text(spec, "y_title"), cls="t l") if spec.get("y_title") else "")
    for t in ticks:
        body += [
            charts.line(left, y(t), WIDTH - 4, y(t), "g zero" if t == 0 else "g"),
            charts.text(left - 6, y(t) + 4, f.short_value(t), anchor="end"),
        ]
    body += [charts.text(x(t), height - bottom + 15, f.short_value(t), anchor="middle") for t in across]
    body.append(
        charts.text(
            (left + WIDTH) / 2, height - bottom + 31, _text(spec, "x_title"), anchor="middle", cls="t l"
        )
    )
    for i, name in enumerate(_names(found)):
        mine = [p for p in found if p.series == name]
        body += [
            charts.line(x(p.x), y(p.low), x(p.x), y(p.high), "whisker")
            for p in mine
            if p.low is not None and p.high is not None
        ]
        if _is(spec, "line"):
            path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in sorted(mine, key=lambda p: p.x))
            body.append(f'<polyline class="s {_MARKS[i % 3]}" points="{path}"/>')
        body += (
            [_dot(x(p.x), y(p.y), i) for p in mine]
            if len(mine) <= 400
            else [_dot(x(p.x), y(p.y), i) for p in mine[:: math.ceil(len(mine) / 400)]]
        )
    return body, height - 6


def _across(
    values: Sequence[float | int], start: float | int, end: float | int
) -> tuple[Callable[[float | int], float | int], list[float | int]]:
    low, high = min(values), max(values)
    if low == high:
        return (lambda v: (start + end) / 2), [low]
    return (lambda v: start + (v - low) / (high - low) * (end - start)), round_ticks(low, high, 6)
