"""Charts as SVG text, drawn here once for the report (where CSS colours them, light or dark) and for files (`figures`).

Marks carry classes, never colours. Every chart has a title and a description for screen readers, and all text in it is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from skerry.outliers.finding import ChannelAsymmetry, LayerProfile

from . import formatting as f

Scale = Callable[[float | int], float]


def svg(body: Sequence[str], *, width: float | int, height: float | int, title: str, description: str) -> str:
    """One SVG element with an accessible name."""
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(body)}</svg>"
    )


def text(
    x: float | int, y: float | int, words: str, *, cls: str = "t", anchor: str = "start", extra: str = ""
) -> str:
    """A text mark."""
    return f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def line(x1: float | int, y1: float | int, x2: float | int, y2: float | int, cls: str) -> str:
    """A line mark."""
    return f'<line class="{cls}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def log_scale(low: float | int, high: float | int, start: float | int, end: float | int) -> Scale:
    """A map from [low, high] on a logarithmic axis to [start, end] in the drawing."""
    a, b = math.log10(low), math.log10(high)
    return lambda v: start + (math.log10(v) - a) / ((b - a) or 1) * (end - start)


def decades(low: float | int, high: float | int) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with 2 and 5 between them when there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(exponents) <= 3 else (1,)
    ticks = [m * 10.0**e for e in exponents for m in steps]
    if len(exponents) > 6:
        ticks = ticks[::2]
    return [t for t in ticks if low <= t <= high]


def _positive(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v) and v > 0]


def depth(layers: Sequence[LayerProfile]) -> str:
    """Largest and median size of the residual stream through the depth, and of what the down projection reads; empty without data."""
    series = [
        ("largest |x| of resid.out", "a", [p.resid_abs_max for p in layers]),
        ("largest |x| of mlp.down.in", "b", [p.down_in_abs_max for p in layers]),
        ("median |x| of resid.out", "c", [p.resid_median for p in layers]),
    ]
    every = _positive([v for _, _, values in series for v in values])
    if not every:
        return ""
    width, height, left, right, top, bottom = 400, 270, 40, 12, 12, 62
    low, high = min(every) / 1.4, max(every) * 1.4
    y = log_scale(low, high, height - bottom, top)
    step = (width - left - right) / max(1, len(layers) - 1)
    x = lambda i: left + i * step if len(layers) > 1 else (left + width - right) / 2  # noqa: E731
    body = []
    for tick in decades(low, high):
        body += [
            line(left, y(tick), width - right, y(tick), "g"),
            text(left - 6, y(tick) + 3.5, f.short_value(tick), anchor="end"),
        ]
    jump = max(1, math.ceil(len(layers) / 12))
    body += [
        text(x(i), height - bottom + 16, str(p.layer), anchor="middle")
        for i, p in enumerate(layers)
        if i % jump == 0
    ]
    body.append(text((left + width - right) / 2, height - bottom + 30, "layer", anchor="middle", cls="t l"))
    for i, (label, cls, values) in enumerate(series):
        points = [(x(k), y(v)) for k, v in enumerate(values) if v is not None and v > 0 and math.isfinite(v)]
        if not points:
            continue
        body.append(f'<polyline class="s {cls}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
        marks = {"a": "M-3,-3h6v6h-6z", "b": "M0,-4l4,7h-8z", "c": "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0"}
        body += (
            [
                f'<path class="m {cls}" d="{marks[cls]}" transform="translate({a:.1f},{b:.1f})"/>'
                for a, b in points
            ]
            if len(points) <= 48
            else []
        )
        at = (left + (i % 2) * 180, height - 17 + (i // 2) * 13)
        body += [
            f'<path class="m {cls}" d="{marks[cls]}" transform="translate({at[0]},{at[1] - 4})"/>',
            text(at[0] + 9, at[1], label),
        ]
    last = next((p for p in reversed(layers) if p.resid_abs_max is not None), None)
    told = (
        f"In the last layer the largest is {f.number(last.resid_abs_max)}, the median {f.number(last.resid_median)}."
        if last
        else ""
    )
    return svg(
        body,
        width=width,
        height=height,
        title="Size of the residual stream by layer, logarithmic",
        description=told,
    )


def asymmetry(rows: Sequence[ChannelAsymmetry], cloud: Sequence[tuple[float, float]] = ()) -> str:
    """|centre| of channels against half their width, both logarithmic; above the diagonal a channel never crosses zero.

    Args:
        rows: Off-centre channels, drawn as triangles: up for positive centres, down for negative.
        cloud: (half width, |centre|) of ordinary channels of the same sites, for the eye.
    """
    points = [(a.half_width, abs(a.centre)) for a in rows]
    if not points:
        return ""
    finite = [p for p in [*points, *cloud] if p[0] > 0 and p[1] > 0 and math.isfinite(p[0] + p[1])]
    if not finite:
        return ""
    width, height, left, right, top, bottom = 400, 300, 44, 12, 14, 44
    low_x, high_x = min(p[0] for p in finite) / 1.5, max(p[0] for p in finite) * 1.5
    high_y = max(max(p[1] for p in finite) * 1.6, low_x * 3)
    low_y = max(min(p[1] for p in finite) / 1.3, high_y / 3000)
    x, y = log_scale(low_x, high_x, left, width - right), log_scale(low_y, high_y, height - bottom, top)
    body = []
    for t in decades(low_y, high_y):
        body += [
            line(left, y(t), width - right, y(t), "g"),
            text(left - 6, y(t) + 3.5, f.short_value(t), anchor="end"),
        ]
    for t in decades(low_x, high_x):
        body += [
            line(x(t), top, x(t), height - bottom, "g"),
            text(x(t), height - bottom + 15, f.short_value(t), anchor="middle"),
        ]
    a, b = max(low_x, low_y), min(high_x, high_y)
    if a < b:
        body += [line(x(a), y(a), x(b), y(b), "d")]
    body += [text(left + 6, top + 10, "never crosses zero", cls="t n")]
    body.append(
        text(
            (left + width - right) / 2, height - 10, "half width (max − min) / 2", anchor="middle", cls="t l"
        )
    )
    body.append(
        text(
            12,
            (top + height - bottom) / 2,
            "|centre|",
            anchor="middle",
            cls="t l",
            extra=f' transform="rotate(-90 12 {(top + height - bottom) / 2:.0f})"',
        )
    )
    body += [
        f'<circle class="k" cx="{x(p):.1f}" cy="{y(q):.1f}" r="1.6"/>'
        for p, q in cloud
        if low_x <= p <= high_x and low_y <= q <= high_y
    ]
    for r in sorted(rows, key=lambda r: abs(r.centre)):
        if not (r.half_width > 0 and r.centre and math.isfinite(r.half_width + r.centre)):
            continue
        where = r.site if r.layer is None else f"{r.layer}.{r.site}"
        tip = f"channel {r.channel} of {where}: [{f.number(r.min)}, {f.number(r.max)}], asymmetry {f.ratio(r.asymmetry)}"
        shape, cls = ("M0,-5l4.5,8h-9z", "a") if r.centre > 0 else ("M0,5l4.5,-8h-9z", "b")
        at = f"{x(r.half_width):.1f},{y(max(abs(r.centre), low_y)):.1f}"
        body.append(
            f'<path class="m {cls}" d="{shape}" transform="translate({at})" data-tip="{escape(tip)}"/>'
        )
    body += _names(rows, x, y, width - right, low_y)
    return svg(body, width=width, height=height, title="Centre of channels against half their width", description="Triangles up have positive centres, triangles down negative ones. The table beside lists them.")  # fmt: skip


def _names(
    rows: Sequence[ChannelAsymmetry], x: Scale, y: Scale, edge: float | int, floor: float | int
) -> list[str]:
    """Channel numbers beside the furthest points, each channel once and none over another."""
    placed: list[tuple[float, float]] = []
    seen: set[int] = set()
    out = []
    for r in sorted(rows, key=lambda r: -abs(r.centre)):
        if r.channel in seen or not (r.half_width > 0 and abs(r.centre) > floor) or len(placed) >= 8:
            continue
        at = x(r.half_width), y(abs(r.centre))
        if all(abs(at[0] - p[0]) > 30 or abs(at[1] - p[1]) > 12 for p in placed):
            placed.append(at)
            seen.add(r.channel)
            out.append(text(min(at[0], edge - 14), at[1] - 9, str(r.channel), cls="t n", anchor="middle"))
    return out
