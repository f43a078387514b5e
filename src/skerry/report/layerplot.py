"""The life of carriers by layer: birth, plateau, end. One panel for each carrier.

Signed value at the tokens that carry it, with the band from their 0.05 to their 0.95 quantile, against the mean size at other tokens; on an
asinh axis, which is linear about zero and logarithmic far from it. Marks: a triangle up at the birth, a square at the peak, down at the exit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from . import charts
from . import formatting as f
from .lifecycle import picture
from .trace_data import Row, Trace, known

MOST = 6
Scale = Callable[[float | int], float | int]
Frame = tuple[float | int, float | int, float | int, float | int]
WIDTH, HEIGHT = 400.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 44.0, 58.0
# Where a site of a block stands on the axis: the embedding at -1, the end of block n at n.
_SHIFT = {"resid.in": -1.0, "resid.mid": -0.5, "resid.out": 0.0}


def panels(trace: Trace) -> list[str]:
    """One SVG element for each of the most extreme carriers; those of which no course was measured are left out."""
    return [p for p in (panel(trace, c) for c in trace.carriers[:MOST]) if p]


def points(trace: Trace, number: int) -> list[tuple[float | int, Row]]:
    """Places on the axis with their rows, in order; `resid.in` counts for block 0 alone, since it is the end of the block before."""
    rows = [
        (r["layer"] + _SHIFT[r["site"]], r)
        for r in trace["lifecycle"]
        if r["carrier"] == number
        and known(r["value"])
        and r["site"] in _SHIFT
        and (r["site"] != "resid.in" or r["layer"] == 0)
    ]
    return sorted(rows, key=lambda p: p[0])


def panel(trace: Trace, c: Row) -> str:
    """The course of one carrier, or nothing when none was measured."""
    course = points(trace, c["carrier"])
    # Between the sublayers the stream may have another scale (norms behind the sum): the line goes from block end to block end.
    course = [p for p in course if p[1]["site"] != "resid.mid"]
    if not course:
        return ""
    x = x_scale(course)
    y, ticks = y_scale(course)
    body = [*_axes(course, x, ticks, y), *_band(course, x, y)]
    other = [(x(at), y(r["other"])) for at, r in course if known(r["other"])]
    body += [_poly(other, "s other")] if len(other) > 1 else []
    body.append(_poly([(x(at), y(r["value"])) for at, r in course], "s a"))
    body += [_dot(x(at), y(r["value"])) for at, r in course] if len(course) <= 40 else []
    body += _events(trace, c, course, x, y)
    kind = f.tidy(c["kind"] or "outlier")
    body.append(charts.text(0, 12, f"Channel {c['channel']}", cls="ct"))
    tokens = f.listing(trace.tokens(c["carrier"]), limit=2)
    about = f"{kind}{f', {tokens}' if tokens else ''}"
    body.append(charts.text(0, 27, about if len(about) <= 68 else about[:67] + "…"))
    body += _legend(HEIGHT - 8)
    title = f"Channel {c['channel']} by layer"
    return picture(body, width=WIDTH, height=HEIGHT, title=title, description=_told(course), cls="course")


def x_scale(course: Sequence[tuple[float | int, Row]]) -> Scale:
    """From layer to the drawing."""
    low, high = course[0][0], course[-1][0]
    return lambda at: _LEFT + (at - low) / ((high - low) or 1) * (WIDTH - _LEFT - _RIGHT)


def y_scale(
    course: Sequence[tuple[float | int, Row]],
) -> tuple[Scale, list[float | int]]:
    """An asinh axis over all values, bands and other tokens; its unit is what other tokens have. And its ticks."""
    values = [r[k] for _, r in course for k in ("value", "low", "high", "other") if known(r[k])]
    others = sorted(r["other"] for _, r in course if known(r["other"]) and r["other"] > 0)
    top = max(abs(v) for v in values) or 1.0
    unit = others[len(others) // 2] if others and others[len(others) // 2] < top else top / 10
    low, high = min(0.0, *values), max(0.0, *values)
    a, b = (math.asinh(v / unit) for v in (low, high))
    room = (b - a) * 0.1 or 1.0
    a, b = a - (2 * room if low < 0 else room / 3), b + (room if high > 0 else room / 3)
    scale = lambda v: _TOP + (b - math.asinh(v / unit)) / (b - a) * (HEIGHT - _TOP - _BOTTOM)  # noqa: E731
    return scale, _ticks(low, high, unit)


def _ticks(low: float | int, high: float | int, unit: float | int) -> list[float | int]:
    """Zero and powers of ten on both sides, from about the unit on; every second when there are many."""
    start, stop = math.ceil(math.log10(unit)), math.floor(math.log10(max(-low, high, unit)))
    powers = [10.0**e for e in range(start, stop + 1)]
    powers = powers[len(powers) % 2 == 0 :: 2] if len(powers) > 4 else powers
    return [-p for p in reversed(powers) if -p >= low] + [0.0] + [p for p in powers if p <= high]


def _axes(
    course: Sequence[tuple[float | int, Row]],
    x: Scale,
    ticks: Sequence[float | int],
    y: Scale,
) -> list[str]:
    out = []
    for tick in ticks:
        out += [charts.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "g zero" if tick == 0 else "g")]
        out += [charts.text(_LEFT - 6, y(tick) + 3.5, f.short_value(tick), anchor="end")]
    layers = sorted({int(at) for at, r in course if r["site"] == "resid.out"})
    jump = max(1, math.ceil(len(layers) / 11))
    out += [
        charts.text(x(n), HEIGHT - _BOTTOM + 15, str(n), anchor="middle") for n in layers if n % jump == 0
    ]
    if course[0][0] == -1 and jump == 1:
        out.append(charts.text(x(-1), HEIGHT - _BOTTOM + 15, "in", anchor="middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return [*out, charts.text(middle, HEIGHT - _BOTTOM + 30, "end of block", anchor="middle", cls="t l")]


def _band(
    course: Sequence[tuple[float | int, Row]],
    x: Scale,
    y: Scale,
) -> list[str]:
    rows = [(x(at), y(r["low"]), y(r["high"])) for at, r in course if known(r["low"]) and known(r["high"])]
    if len(rows) < 2:
        return []
    edge = [f"{a:.1f},{b:.1f}" for a, _, b in rows] + [f"{a:.1f},{b:.1f}" for a, b, _ in reversed(rows)]
    return [f'<polygon class="quantiles" points="{" ".join(edge)}"/>']


def _poly(places: Sequence[tuple[float | int, float | int]], cls: str) -> str:
    return f'<polyline class="{cls}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>'


def _dot(x: float | int, y: float | int) -> str:
    return f'<circle class="m a" cx="{x:.1f}" cy="{y:.1f}" r="1.7"/>'


def _events(trace: Trace, c: Row, course: Sequence[tuple[float | int, Row]], x: Scale, y: Scale) -> list[str]:
    """Marks at birth, peak and exit, each with its name and block where neither the line nor another name is."""
    shapes = {"birth": "M0,-5l5,9h-10z", "peak": "M-4,-4h8v8h-8z", "exit": "M0,5l5,-9h-10z"}
    out: list[str] = []
    taken: list[Frame] = []
    line = [(x(at), y(r["value"])) for at, r in course]
    for name, shape in shapes.items():
        layer = c[f"{name}_layer"]
        row = trace.life(c["carrier"], layer, "resid.out") if layer is not None else None
        if layer is None and name == "birth":
            row, layer = trace.life(c["carrier"], 0, "resid.in"), -1
        if row is None or layer is None or not known(row["value"]):
            continue
        at = x(layer), y(row["value"])
        label = "birth: embedding" if layer == -1 else f"{name} {layer}"
        frame = _free(at, len(label) * 6.0, line, taken, up=row["value"] >= 0)
        taken.append(frame)
        out.append(f'<path class="event" d="{shape}" transform="translate({at[0]:.1f},{at[1]:.1f})"/>')
        out.append(charts.text((frame[0] + frame[2]) / 2, frame[3] - 2, label, cls="n", anchor="middle"))
    return out


def _free(
    at: tuple[float | int, float | int],
    width: float | int,
    line: Sequence[tuple[float | int, float | int]],
    taken: Sequence[Frame],
    *,
    up: bool,
) -> Frame:
    """The first frame for a name above or below a mark that no line and no other name crosses."""
    centre = min(max(at[0], _LEFT + width / 2), WIDTH - width / 2)
    sides = (-9, 21, -22, 34) if up else (21, -9, 34, -22)
    frames = [(centre - width / 2, at[1] + s - 11, centre + width / 2, at[1] + s + 2) for s in sides]
    inside = [fr for fr in frames if fr[1] > 28 and fr[3] < HEIGHT - _BOTTOM + 4]
    clear = [fr for fr in inside if not any(_meet(fr, other) for other in taken)]
    alone = [fr for fr in clear if not _crossed(fr, line)]
    return next(iter([*alone, *clear, *inside, *frames]))


def _meet(a: Frame, b: Frame) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _crossed(frame: Frame, line: Sequence[tuple[float | int, float | int]]) -> bool:
    """Whether a line of straight pieces runs through a frame."""
    for (x0, y0), (x1, y1) in pairwise(line):
        for step in range(21):
            x, y = x0 + (x1 - x0) * step / 20, y0 + (y1 - y0) * step / 20
            if frame[0] < x < frame[2] and frame[1] < y < frame[3]:
                return True
    return False


def _legend(y: float | int) -> list[str]:
    return [
        charts.line(0, y - 4, 18, y - 4, "s a"),
        charts.text(22, y, "its tokens (band: 5 to 95 %)"),
        charts.line(186, y - 4, 204, y - 4, "s other"),
        charts.text(208, y, "size at other tokens"),
        charts.text(WIDTH, y, "asinh axis", anchor="end"),
    ]


def _told(course: Sequence[tuple[float | int, Row]]) -> str:
    shown = [r for _, r in course if r["site"] != "resid.mid"]
    return (
        "Mean value at its tokens: "
        + ", ".join(f"{r['layer']}.{r['site']} {f.number(r['value'])}" for r in shown)
        + "."
    )


def sheet(trace: Trace) -> str:
    """All panels on one sheet of two columns, for a file; nothing without any."""
    found = panels(trace)
    if not found:
        return ""
    columns = min(2, len(found))
    body = [
        p.replace(
            "<svg ",
            f'<svg x="{(i % columns) * (WIDTH + 30):g}" y="{i // columns * (HEIGHT + 24):g}" width="{WIDTH:g}" height="{HEIGHT:g}" ',
            1,
        )
        for i, p in enumerate(found)
    ]
    rows = -(-len(found) // columns)
    width, height = columns * (WIDTH + 30) - 30, rows * (HEIGHT + 24) - 24
    return picture(
        body,
        width=width,
        height=height,
        title="Outliers by layer",
        description="One panel for each outlier.",
        cls="course",
    )
