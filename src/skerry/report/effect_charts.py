"""Effects of interventions as pictures: changes with their intervals, controls in grey beside them; and the dose-response curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import charts
from . import formatting as f
from .figures import ticks as ticks_of
from .lifecycle import picture, wrap
from .trace_data import Row, Trace, interval, known

WIDTH = 400.0
UNITS = {
    "loss": "nats per token",
    "kl": "nats per token",
    "distance": "of the last hidden states",
    "sink mass": "share of attention",
}
PATHS = ("birth", "super weight", "path", "start", "sink", "removal")


@dataclass(frozen=True)
class Mark:
    """One line of a forest plot.

    Attributes:
        label: What was done.
        value: The change; None for a line of controls only.
        low: Lower end of its interval.
        high: Upper end of it.
        controls: Changes under the matched controls.
    """

    label: str
    value: float | int | None = None
    low: float | int | None = None
    high: float | int | None = None
    controls: tuple[float | int, ...] = ()


def strongest(rows: Sequence[Row]) -> list[Row]:
    """Of every group and arm (and dose) the row of the block where the change is largest."""
    best: dict[tuple[object, ...], Row] = {}
    for r in rows:
        key = r["group"], r["arm"], r["outcome"], r["dose"]
        if key not in best or abs(r["change"]) > abs(best[key]["change"]):
            best[key] = r
    return list(best.values())


def controls(trace: Trace, row: Row) -> list[Row]:
    """The matched controls of an effect: same group, outcome and block."""
    rows = trace.effects(row["group"], row["outcome"], control=True)
    return [r for r in rows if r["outcome_layer"] == row["outcome_layer"]]


def forest_marks(trace: Trace, outcome: str) -> list[tuple[str, list[Mark]]]:
    """The lines of an outcome by group; controls stand once a group, on a line of their own."""
    out = []
    for group in PATHS:
        rows = strongest(trace.effects(group, outcome))
        if not rows:
            continue
        marks = [Mark(_label(r, outcome), r["change"], r["low"], r["high"]) for r in rows]
        grey = tuple(c["change"] for c in controls(trace, max(rows, key=lambda r: abs(r["change"]))))
        if grey:
            marks.append(Mark(f.count(len(grey), "matched control"), controls=grey))
        out.append((group, marks))
    return out


def _label(row: Row, outcome: str) -> str:
    place = "" if row["outcome_layer"] is None else f" (block {row['outcome_layer']})"
    return f"{f.tidy(row['arm'])}{place}"


def forest(trace: Trace, outcome: str) -> str:
    """All effects on an outcome with their intervals, controls in grey; nothing without any."""
    return draw_forest(forest_marks(trace, outcome), outcome)


def draw_forest(groups: Sequence[tuple[str, Sequence[Mark]]], outcome: str) -> str:
    """Marks by group on one axis; nothing without a number."""
    every = [v for _, marks in groups for m in marks for v in (m.value, m.low, m.high, *m.controls)]
    values = [v for v in every if v is not None and known(v)]
    if not values:
        return ""
    x, ticks = linear(values, 8, WIDTH - 8)
    body = [charts.text(0, 13, f"Change of {outcome}{_unit(outcome)}", cls="ct")]
    y = 36.0
    for group, marks in groups:
        if group:
            body.append(charts.text(0, y, group.upper(), cls="t cap"))
            y += 17
        for mark in marks:
            y = _draw_mark(mark, x, y, body)
        y += 4
    y -= 8
    body.append(charts.line(8, y, WIDTH - 8, y, "g"))
    body += [charts.text(x(t), y + 14, f.short_value(t), anchor="middle") for t in ticks]
    told = "; ".join(
        f"{m.label}: {f.number(m.value)}{interval(m.__dict__)}"
        for _, marks in groups
        for m in marks
        if m.value is not None
    )
    return picture(
        body,
        width=WIDTH,
        height=y + 22,
        title=f"Change of {outcome} by intervention",
        description=told,
        cls="forest",
    )


def role_forest(trace: Trace, outcome: str) -> str:
    """The arms of the whole model with their matched controls, on one axis."""
    rows = [r for r in trace["roles"] if r["level"] == "model" and r["outcome"] == outcome]
    marks = [
        Mark(f.tidy(r["arm"] or ""), r["change"], r["low"], r["high"], _known(r["control"]))
        for r in rows
        if r["change"] is not None
    ]
    return draw_forest([("", marks)], outcome)


def _known(value: float | int | None) -> tuple[float | int, ...]:
    return () if value is None else (value,)


def _unit(outcome: str) -> str:
    if outcome not in UNITS:
        return ""
    return f" {UNITS[outcome]}" if outcome == "distance" else f", {UNITS[outcome]}"


def _draw_mark(
    mark: Mark, x: Callable[[float | int], float | int], y: float | int, body: list[str]
) -> float | int:
    is_control = mark.value is None
    shown = _span(mark.controls) if is_control else f"{f.number(mark.value)}{interval(mark.__dict__)}"
    lines = wrap(mark.label, (WIDTH - 16 - 6.4 * len(shown)) / 5.75)
    body.append(charts.text(WIDTH, y, shown, cls="v u" if is_control else "v", anchor="end"))
    for part in lines[:2]:
        body.append(charts.text(0, y, part, cls="t" if is_control else "r"))
        y += 13
    at = y - 3
    body.append(charts.line(x(0), at - 6, x(0), at + 6, "g zero"))
    body += [f'<circle class="u" cx="{x(c):.1f}" cy="{at:.1f}" r="3"/>' for c in mark.controls]
    if mark.low is not None and mark.high is not None:
        body.append(charts.line(x(mark.low), at, x(mark.high), at, "whisker"))
    if mark.value is not None:
        body.append(
            f'<rect class="o" x="{x(mark.value) - 3.5:.1f}" y="{at - 3.5:.1f}" width="7" height="7"/>'
        )
    return y + 18


def _span(values: Sequence[float | int]) -> str:
    low, high = f.number(min(values), digits=2), f.number(max(values), digits=2)
    return low if low == high else f"{low} to {high}"


def linear(
    values: Sequence[float | int], start: float | int, end: float | int
) -> tuple[Callable[[float | int], float | int], list[float | int]]:
    """A linear scale over values and zero, and about five round ticks."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = (high - low) * 0.05 or 1.0
    a, b = low - room * (low < 0), high + room * (high > 0 or low == 0)
    return (lambda v: start + (v - a) / (b - a) * (end - start)), round_ticks(a, b, 5)


def round_ticks(low: float | int, high: float | int, most: int) -> list[float | int]:
    """At most `most` + 1 round numbers in [low, high]."""
    return [0.0 if abs(t) < (high - low) * 1e-9 else t for t in ticks_of(low, high, most)]


def dose_panels(trace: Trace) -> list[str]:
    """A dose-response curve for every outcome that has one: factor on the outlier against the outcome."""
    outcomes = list(dict.fromkeys(r["outcome"] for r in trace.effects("dose")))
    return [panel for o in outcomes if (panel := dose_panel(trace, o))]


def dose_rows(trace: Trace, outcome: str) -> list[Row]:
    """The curve of one outcome, in the block where it reacts most, by dose."""
    rows = [r for r in trace.effects("dose", outcome) if r["dose"] is not None]
    if not rows:
        return []
    layer = max(rows, key=lambda r: abs(r["change"]))["outcome_layer"]
    return sorted((r for r in rows if r["outcome_layer"] == layer), key=lambda r: r["dose"])


def dose_panel(trace: Trace, outcome: str) -> str:
    """The curve of one outcome; nothing with fewer than two doses."""
    rows = dose_rows(trace, outcome)
    if len({r["dose"] for r in rows}) < 2:
        return ""
    height, left, bottom, top = 210.0, 52.0, 46.0, 26.0
    grey = [
        r
        for r in trace.effects("dose", outcome, control=True)
        if r["outcome_layer"] == rows[0]["outcome_layer"] and r["dose"] is not None
    ]
    values = [v for r in rows for v in (r["change"], r["low"], r["high"]) if known(v)] + [
        r["change"] for r in grey
    ]
    y, ticks = linear(values, height - bottom, top)
    x, _ = linear([r["dose"] for r in rows], left + 6, WIDTH - 14)
    body = [charts.text(0, 12, _heading(rows[0]), cls="ct")]
    for t in ticks:
        body += [
            charts.line(left, y(t), WIDTH - 8, y(t), "g zero" if t == 0 else "g"),
            charts.text(left - 6, y(t) + 4, f.short_value(t), anchor="end"),
        ]
    body += [f'<circle class="u" cx="{x(r["dose"]):.1f}" cy="{y(r["change"]):.1f}" r="2.6"/>' for r in grey]
    path = " ".join(f"{x(r['dose']):.1f},{y(r['change']):.1f}" for r in rows)
    body.append(f'<polyline class="s a" points="{path}"/>')
    for r in rows:
        if known(r["low"]) and known(r["high"]):
            body.append(charts.line(x(r["dose"]), y(r["low"]), x(r["dose"]), y(r["high"]), "whisker"))
        body.append(f'<circle class="m a" cx="{x(r["dose"]):.1f}" cy="{y(r["change"]):.1f}" r="3.4"/>')
        body.append(charts.text(x(r["dose"]), height - bottom + 15, f.number(r["dose"]), anchor="middle"))
    body.append(
        charts.text(
            (left + WIDTH) / 2, height - bottom + 31, "factor on the outlier", anchor="middle", cls="t l"
        )
    )
    told = ", ".join(f"{f.number(r['dose'])}: {f.number(r['change'])}{interval(r)}" for r in rows)
    return picture(
        body,
        width=WIDTH,
        height=height - 6,
        title=f"Change of {outcome} by dose",
        description=told,
        cls="dose",
    )


def _heading(row: Row) -> str:
    place = "" if row["outcome_layer"] is None else f" (block {row['outcome_layer']})"
    return f"Change of {row['outcome']}{_unit(row['outcome'])}{place}"
