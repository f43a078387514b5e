"""Before and after taming in one picture: range per channel, range per layer, damage by bits. SVG; marks carry classes, never colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from . import charts
from . import formatting as f
from .cost_axes import dot, key, path, rule, short_name, symlog
from .heat import NUM_STEPS
from .impact_data import FLOAT, Costs, change, unit
from .lifecycle import picture
from .trace_data import Row, known

WIDTH = 352.0
"""Three stand in a row."""
_MOST_CHANNELS, _MOST_LAYERS, _MOST_METHODS = 64, 48, 8


def ranges_chart(costs: Costs, seam: str | None = None) -> str:
    """Every channel's range before and after, the widest channel first; nothing without ranges.

    Args:
        costs: The tables.
        seam: Which seam; the one whose range shrinks most by default.
    """
    rows = [r for r in costs.channels(seam) if all(known(r[k]) for k in _ENDS)]
    if not rows:
        return ""
    rows.sort(key=lambda r: -max(abs(r["low_before"]), abs(r["high_before"])))
    rows = rows[:_MOST_CHANNELS]
    left, right, height = 56.0, WIDTH - 6, 270.0
    body = [charts.text(0, 12, f"Range of each channel at {short_name(rows[0]['seam'], 30)}", cls="ct")]
    body += [
        '<rect class="before" x="0" y="21" width="9" height="10"/>', charts.text(14, 30, "before", cls="t r"),
        '<rect class="after" x="70" y="21" width="9" height="10"/>', charts.text(84, 30, "after", cls="t r"),
    ]  # fmt: skip
    top, bottom = 42.0, height - 36
    y = symlog((v for r in rows for v in _values(r)), bottom, top)
    rule(y, x=(left, right), y=(top, bottom), body=body, vertical=True)
    step = (right - left) / len(rows)
    wide = max(1.2, min(9.0, step * 0.78))
    for i, r in enumerate(rows):
        x = left + (i + 0.5) * step
        for cls, low, high, w in (
            ("before", "low_before", "high_before", wide),
            ("after", "low_after", "high_after", wide * 0.55),
        ):
            a, b = y.at(r[high]), y.at(r[low])
            tip = f"channel {r['channel']}: [{f.number(r['low_before'])}, {f.number(r['high_before'])}] before, [{f.number(r['low_after'])}, {f.number(r['high_after'])}] after"
            body.append(
                f'<rect class="{cls}" x="{x - w / 2:.1f}" y="{a:.1f}" width="{w:.1f}" height="{max(1.0, b - a):.1f}" data-tip="{tip}"/>'
            )

    if step >= 22:
        body += [
            charts.text(left + (i + 0.5) * step, bottom + 14, str(r["channel"]), anchor="middle")
            for i, r in enumerate(rows)
        ]
    first = ", ".join(str(r["channel"]) for r in rows[:4])
    words = "channel" if step >= 22 else f"channels, the widest before first ({first}, …)"
    body.append(charts.text((left + right) / 2, bottom + 30, words, anchor="middle", cls="t l"))
    return picture(
        body,
        width=WIDTH,
        height=height,
        title="Range of each channel before and after",
        description=_told(rows),
        cls="costs ranges",
    )


_ENDS = ("low_before", "high_before", "low_after", "high_after")


def _values(r: Row) -> list[float]:
    return [r[k] for k in _ENDS]


def _told(rows: Sequence[Row]) -> str:
    return "; ".join(
        f"channel {r['channel']}: [{f.number(r['low_before'])}, {f.number(r['high_before'])}] before, "
        f"[{f.number(r['low_after'])}, {f.number(r['high_after'])}] after"
        for r in rows[:12]
    )


def strip_chart(costs: Costs) -> str:
    """Range of each changed tensor by layer, before above after, one colour scale for all; nothing without ranges."""
    rows = [
        r
        for r in costs.seams()
        if known(r["range_before"]) and known(r["range_after"]) and r["layer"] is not None
    ]
    if not rows:
        return ""
    kinds = list(dict.fromkeys((r["kind"], r["site"]) for r in sorted(rows, key=lambda r: r["layer"])))
    layers = sorted({r["layer"] for r in rows})
    pool = -(-len(layers) // _MOST_LAYERS)
    groups = [layers[i : i + pool] for i in range(0, len(layers), pool)]
    values = [v for r in rows for v in (r["range_before"], r["range_after"]) if v > 0]
    low, high = min(values, default=1.0), max(values, default=1.0)
    left = 116.0
    cell = (WIDTH - left) / max(6, len(groups))
    body = [charts.text(0, 12, "Range of each tensor by layer", cls="ct")]
    y = _legend(low, high, body)
    for kind, site in kinds:
        body.append(charts.text(0, y + 11, f"{site}", cls="t r"))
        if sum(s == site for _, s in kinds) > 1:
            body.append(charts.text(0, y + 24, f"({kind})", cls="t"))
        for name, column in (("before", "range_before"), ("after", "range_after")):
            body.append(charts.text(left - 6, y + 12, name, anchor="end"))
            for i, group in enumerate(groups):
                here = [r for r in rows if (r["kind"], r["site"]) == (kind, site) and r["layer"] in group]
                if here:
                    # Of several layers or experts in one cell the widest.
                    value = max(r[column] for r in here)
                    body.append(_cell(left + i * cell, y, cell, value, low, high, _tip(here, column, name)))
            y += 19
        y += 9
    jump = max(1, math.ceil(len(groups) / 12))
    body += [
        charts.text(left + (i + 0.5) * cell, y + 6, str(group[0]), anchor="middle")
        for i, group in enumerate(groups)
        if i % jump == 0
    ]
    body.append(charts.text((left + WIDTH) / 2, y + 22, "layer", anchor="middle", cls="t l"))
    told = "; ".join(
        f"{r['seam']}: {f.number(r['range_before'])} before, {f.number(r['range_after'])} after"
        for r in rows[:24]
    )
    return picture(
        body,
        width=WIDTH,
        height=y + 28,
        title="Range of each tensor before and after, by layer",
        description=told,
        cls="costs strip",
    )


def _tip(rows: Sequence[Row], column: str, name: str) -> str:
    r = max(rows, key=lambda r: r[column])
    return f"{r['seam']}: range {f.number(r[column])} {name}"


def heat_step(value: float | int, low: float | int, high: float | int) -> int:
    """Step of the colour scale: logarithmic from the smallest range to the largest."""
    if not value > 0 or not high > low:
        return 0
    return min(NUM_STEPS - 1, max(0, int(math.log(value / low) / math.log(high / low) * (NUM_STEPS - 0.001))))


def _cell(
    x: float | int,
    y: float | int,
    cell: float | int,
    value: float | int,
    low: float | int,
    high: float | int,
    tip: str,
) -> str:
    step = heat_step(value, low, high)
    box = f'<rect class="heat{step}" x="{x + 0.6:.1f}" y="{y:.1f}" width="{cell - 1.2:.1f}" height="18" rx="2" data-tip="{f.tidy(tip).replace(chr(34), "")}"/>'
    words = f.short(value)
    if 5.6 * len(words) > cell - 1:
        return box
    return box + charts.text(x + cell / 2, y + 13, words, cls=f"heatink{step}", anchor="middle")


def _legend(low: float | int, high: float | int, body: list[str]) -> float:
    x = 0.0
    body.append(charts.text(x, 31, f.short_value(low)))
    x = 7 + 6.2 * len(f.short_value(low))
    for step in range(NUM_STEPS):
        body.append(f'<rect class="heat{step}" x="{x:.1f}" y="22" width="11" height="11"/>')
        x += 11
    body.append(charts.text(x + 5, 31, f"{f.short_value(high)}   max − min, logarithmic"))
    return 46.0


def bits_chart(costs: Costs) -> str:
    """Damage under each scheme, one line for each method; nothing without a number."""
    schemes = [s for s in costs.schemes if s != FLOAT and _numbers(costs, s)]
    if not schemes:
        return ""
    names = list(dict.fromkeys(m for s in schemes for m in _numbers(costs, s)))
    best = [m for m in names if m == costs.best]
    shown = [*names[:1], *(m for m in best if m != names[0]), *(m for m in names[1:] if m not in best)][
        :_MOST_METHODS
    ]
    body = [
        charts.text(
            0,
            12,
            f"Damage by bits, {unit(costs.damage)}"
            if costs.damage == "loss"
            else f"Damage by bits ({costs.damage})",
            cls="ct",
        )
    ]
    top = key([_called(m, costs) for m in shown], 30, WIDTH, body) + 8
    if len(names) > len(shown):
        body.append(charts.text(0, top + 6, f"{len(names) - len(shown)} more methods in the table"))
        top += 16
    left, right, bottom = 56.0, WIDTH - 10, top + 170
    found = [r for s in schemes for m in shown for r in _numbers(costs, s).get(m, [])]
    y = symlog((v for r in found for v in (r["change"], r["ci_low"], r["ci_high"])), bottom, top)
    rule(y, x=(left, right), y=(top, bottom), body=body, vertical=True)
    step = (right - left) / len(schemes)
    spread = min(14.0, step * 0.7 / max(1, len(shown)))
    for i, method in enumerate(shown):
        points = []
        for k, scheme in enumerate(schemes):
            rows = _numbers(costs, scheme).get(method, [])
            x = left + (k + 0.5) * step + (i - (len(shown) - 1) / 2) * spread
            body += [
                charts.line(x, y.at(r["ci_low"]), x, y.at(r["ci_high"]), "whisker thin")
                for r in rows
                if known(r["ci_low"]) and known(r["ci_high"])
            ]
            if rows:
                points.append((x, y.at(sum(r["change"] for r in rows) / len(rows))))
        body.append(path(points, i) if len(points) > 1 else "")
        body += [dot(a, b, i) for a, b in points]
    body += [
        charts.text(left + (k + 0.5) * step, bottom + 15, short_name(s, 18), anchor="middle", cls="n")
        for k, s in enumerate(schemes)
    ]
    told = "; ".join(f"{r['scheme']}, {r['method']}: {change(r)}" for r in found)
    return picture(
        body,
        width=WIDTH,
        height=bottom + 24,
        title="Damage by bits and method",
        description=told,
        cls="costs bits",
    )


def _called(method: str, costs: Costs) -> str:
    name = "no method" if method == "none" else method
    return f"{name} (chosen)" if method == costs.chosen else name


def _numbers(costs: Costs, scheme: str) -> dict[str, list[Row]]:
    rows = {m: [r for r in found if known(r["change"])] for m, found in costs.methods[scheme].items()}
    return {m: found for m, found in rows.items() if found}
