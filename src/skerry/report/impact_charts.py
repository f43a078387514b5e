"""What things cost, as pictures: schemes, single sites, clipping beside its control, pruning. SVG; marks carry classes, never colours."""

from __future__ import annotations

from collections.abc import Sequence

from . import charts
from . import formatting as f
from .cost_axes import dot, key, path, rule, short_name, symlog
from .impact_data import Costs, change, place, unit
from .lifecycle import picture
from .trace_data import Row, known

WIDTH = 440.0
_MOST_SITES = 16
_NAMES = {"inputs": "inputs of linear maps", "residual": "the residual stream"}


def grid_chart(costs: Costs) -> str:
    """Every scheme's damage with its interval, least first; nothing without a number."""
    rows = costs.grid
    if not rows:
        return ""
    label, right = 118.0, WIDTH - 6
    end = right - _room(rows)
    x = symlog((v for r in rows for v in (r["change"], r["ci_low"], r["ci_high"])), label + 8, end)
    body = [charts.text(0, 12, _title("Damage of the whole model quantized", costs), cls="ct")]
    top, y = 24.0, 24.0
    for r in rows:
        body.append(charts.text(label, y + 12, short_name(r["scheme"], 20), cls="n", anchor="end"))
        body += _whisker(r, x.at, y + 8)
        body += [
            dot(x.at(r["change"]), y + 8, 0),
            charts.text(right, y + 12, change(r, digits=2), cls="v", anchor="end"),
        ]
        y += 20
    rule(x, x=(label, end), y=(top, y), body=body, vertical=False)
    told = "; ".join(f"{r['scheme']}: {change(r)}" for r in rows)
    return picture(
        body,
        width=WIDTH,
        height=y + 22,
        title="Damage of quantization by scheme",
        description=told,
        cls="costs",
    )


def _room(rows: Sequence[Row]) -> float:
    """What the longest number with its interval takes at the right."""
    return 12 + 5.9 * max(len(change(r, digits=2)) for r in rows)


def _title(words: str, costs: Costs) -> str:
    return f"{words}, {unit(costs.damage)}" if costs.damage == "loss" else f"{words} ({costs.damage})"


def _whisker(r: Row, at: object, y: float | int) -> list[str]:
    if not (known(r["ci_low"]) and known(r["ci_high"])):
        return []
    return [charts.line(at(r["ci_low"]), y, at(r["ci_high"]), y, "whisker")]  # type: ignore[operator]


def sites_chart(costs: Costs) -> str:
    """The dearest sites: what quantizing each alone costs, and what is left with outlier channels, and outlier tokens, in full precision."""
    rows = [r for r in costs.sites if r["change"] > 0][:_MOST_SITES]
    if not rows:
        return ""
    schemes = list(dict.fromkeys(r["scheme"] for r in rows))
    names = [place(r) if len(schemes) == 1 else f"{place(r)} {r['scheme']}" for r in rows]
    label, right = min(176.0, 14 + 6.2 * max(map(len, names))), WIDTH - 6
    every = ("change", "ci_low", "ci_high", *_WITHOUT)
    end = right - _room(rows)
    x = symlog((r[k] for r in rows for k in every), label + 8, end)
    body = [charts.text(0, 12, _title("Damage of one site quantized alone", costs), cls="ct")]
    series = [
        "all quantized",
        "outlier channels spared",
        *(["outlier tokens spared"] if _any(rows, _WITHOUT[1]) else []),
    ]
    y = key(series, 30, WIDTH, body) + 2
    top = y
    for name, r in zip(names, rows, strict=True):
        body.append(charts.text(label, y + 12, short_name(name, 27), cls="n", anchor="end"))
        left = [(x.at(r[k]), i + 1) for i, k in enumerate(_WITHOUT) if known(r[k])]
        at = x.at(r["change"])
        if left:
            body.append(charts.line(min(a for a, _ in left), y + 8, at, y + 8, "g zero"))
        body += _whisker(r, x.at, y + 8)
        body += [dot(a, y + 8, i) for a, i in left]
        body += [dot(at, y + 8, 0), charts.text(right, y + 12, change(r, digits=2), cls="v", anchor="end")]
        y += 20
    rule(x, x=(label, end), y=(top, y), body=body, vertical=False)
    told = "; ".join(
        f"{place(r)}: {change(r)}, outlier channels {f.percent(r['share_channels'])}, outlier tokens {f.percent(r['share_tokens'])}"
        for r in rows
    )
    return picture(
        body,
        width=WIDTH,
        height=y + 22,
        title="The most expensive sites",
        description=told,
        cls="costs sites",
    )


_WITHOUT = ("change_without_channels", "change_without_tokens")


def _any(rows: Sequence[Row], column: str) -> bool:
    return any(known(r[column]) for r in rows)


def clipping_panels(costs: Costs) -> list[str]:
    """Damage by what share of the values was clipped, with the band of the controls; one picture for each that was clipped."""
    return [panel for site in costs.clipped if (panel := clipping_panel(costs, site))]


def clipping_panel(costs: Costs, site: str) -> str:
    """One curve; nothing with fewer than two points."""
    rows = [r for r in costs.clipped[site] if known(r["share_clipped"]) and r["share_clipped"] > 0]
    rows.sort(key=lambda r: r["share_clipped"])
    if len(rows) < 2:
        return ""
    grey = costs.controls(site)
    left, right, top, height = 56.0, WIDTH - 10, 46.0, 250.0
    bottom = height - 46
    y = symlog(
        (v for r in rows for v in (r["change"], r["ci_low"], r["ci_high"], *grey.get(r["quantile"], ()))),
        bottom,
        top,
    )
    low, high = rows[0]["share_clipped"], rows[-1]["share_clipped"]
    x = charts.log_scale(low / 1.3, high * 1.3, left, right)
    body = [charts.text(0, 12, _title(f"Clipping {place_name(site)}", costs), cls="ct")]
    key(["clipped"], 30, WIDTH, body)
    body += [
        '<rect class="controlband" x="86" y="20" width="18" height="10"/>',
        charts.text(110, 30, "control: as many smaller values moved as far", cls="t r"),
    ]
    rule(y, x=(left, right), y=(top, bottom), body=body, vertical=True)
    band = [(r, grey[r["quantile"]]) for r in rows if grey.get(r["quantile"])]
    if band:
        upper = [(x(r["share_clipped"]), y.at(max(v))) for r, v in band]
        lower = [(x(r["share_clipped"]), y.at(min(v))) for r, v in band]
        told = " ".join(f"{a:.1f},{b:.1f}" for a, b in [*upper, *reversed(lower)])
        middle = [(x(r["share_clipped"]), y.at(sum(v) / len(v))) for r, v in band]
        body.append(f'<polygon class="controlband" points="{told}"/>')
        body.append(
            f'<polyline class="s control" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in middle)}"/>'
        )
    body.append(path([(x(r["share_clipped"]), y.at(r["change"])) for r in rows], 0))
    for r in rows:
        at = x(r["share_clipped"])
        if known(r["ci_low"]) and known(r["ci_high"]):
            body.append(charts.line(at, y.at(r["ci_low"]), at, y.at(r["ci_high"]), "whisker"))
        body.append(dot(at, y.at(r["change"]), 0))
    ticks = [t for t in charts.decades(low / 1.3, high * 1.3) if f"{t:e}"[0] == "1"]
    body += [charts.text(x(t), bottom + 15, share_words(t), anchor="middle") for t in ticks]
    body.append(
        charts.text(
            (left + right) / 2, bottom + 32, "share of the values that is clipped", anchor="middle", cls="t l"
        )
    )
    told = "; ".join(
        f"{share_words(r['share_clipped'])} at |x| > {f.number(r['threshold'])}: {change(r)}" for r in rows
    )
    return picture(body, width=WIDTH, height=height, title=f"Clipping {site}", description=told, cls="costs")


def place_name(site: str) -> str:
    """What was clipped, in words."""
    return _NAMES.get(site, f.tidy(site))


def share_words(x: float | int) -> str:
    """A share as per cent, however small."""
    return f"{f.number(100 * x, digits=2)} %"


def pruning_chart(costs: Costs) -> str:
    """Damage by sparsity, one line for each method; nothing without a number."""
    curves = costs.pruned
    rows = [r for found in curves.values() for r in found]
    if not rows:
        return ""
    body = [charts.text(0, 12, _title("Damage of pruning", costs), cls="ct")]
    top = key(list(curves), 30, WIDTH, body) + 6
    left, right, bottom = 56.0, WIDTH - 14, top + 180
    y = symlog((v for r in rows for v in (r["change"], r["ci_low"], r["ci_high"])), bottom, top)
    at = sorted({r["sparsity"] for r in rows})
    x = _linear(at[0], at[-1], left + 14, right - 8)
    rule(y, x=(left, right), y=(top, bottom), body=body, vertical=True)
    for i, found in enumerate(curves.values()):
        body.append(path([(x(r["sparsity"]), y.at(r["change"])) for r in found], i))
        for r in found:
            if known(r["ci_low"]) and known(r["ci_high"]):
                body.append(
                    charts.line(
                        x(r["sparsity"]),
                        y.at(r["ci_low"]),
                        x(r["sparsity"]),
                        y.at(r["ci_high"]),
                        "whisker thin",
                    )
                )
            body.append(dot(x(r["sparsity"]), y.at(r["change"]), i))
    body += [charts.text(x(s), bottom + 15, f.percent(s), anchor="middle") for s in at]
    body.append(
        charts.text(
            (left + right) / 2, bottom + 32, "share of the weights that is gone", anchor="middle", cls="t l"
        )
    )
    told = "; ".join(
        f"{m} at {f.percent(r['sparsity'])}: {change(r)}" for m, found in curves.items() for r in found
    )
    return picture(
        body,
        width=WIDTH,
        height=bottom + 40,
        title="Damage of pruning by sparsity",
        description=told,
        cls="costs",
    )


def _linear(low: float | int, high: float | int, start: float | int, end: float | int) -> charts.Scale:
    if low == high:
        return lambda v: (start + end) / 2
    return lambda v: start + (v - low) / (high - low) * (end - start)


def conflict_chart(rows: Sequence[tuple[str, float | None, float | None, float | None]]) -> str:
    """What each method keeps at one sparsity: outlier weights and weights in outlier channels, beside the share that all weights keep.

    Args:
        rows: Method, share of all other weights that is kept, of outlier weights, of weights in outlier channels.
    """
    if not rows:
        return ""
    label, right = 118.0, WIDTH - 12
    x = _linear(0.0, 1.0, label + 8, right)
    body = [charts.text(0, 12, "Share of the weights that each method keeps", cls="ct")]
    top = key(["outlier weights", "weights in outlier channels", "all others"], 30, WIDTH, body) + 2
    y = top
    for method, rest, outliers, channels in rows:
        body.append(charts.text(label, y + 13, short_name(method, 20), cls="n", anchor="end"))
        shown = [(v, i) for i, v in enumerate((outliers, channels, rest)) if known(v) and v is not None]
        if len(shown) > 1:
            ends = [x(v) for v, _ in shown]
            body.append(charts.line(min(ends), y + 9, max(ends), y + 9, "g"))
        body += [dot(x(v), y + 9, i) for v, i in reversed(shown)]
        y += 21
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        body += [
            charts.line(x(t), top, x(t), y, "g"),
            charts.text(x(t), y + 14, f.percent(t), anchor="middle"),
        ]
    told = "; ".join(
        f"{m}: outlier weights {f.percent(o)}, in outlier channels {f.percent(c)}, others {f.percent(r)}"
        for m, r, o, c in rows
    )
    return picture(
        body, width=WIDTH, height=y + 22, title="What pruning keeps", description=told, cls="costs"
    )
