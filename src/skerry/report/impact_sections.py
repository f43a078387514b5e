"""The report's section on costs: schemes, single sites, levels, clipping, pruning. HTML, all text escaped.

A part is there when the run has its table; when it is empty it says plainly that nothing was measured.
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from . import formatting as f
from . import heat, impact_charts
from .impact_data import ORIGINAL, UNITS, Costs, change, place
from .trace_data import Row, known
from .trace_sections import template

GRID_HEAD = ["Scheme", "Damage and 95 % interval", "Perplexity", "KL", "Same top token", "Cosine", "Same neighbours", "Inputs"]  # fmt: skip
SITE_HEAD = ["Site", "Scheme", "Damage and 95 % interval", "By outlier channels", "By outlier tokens", "Range", "Levels of the central 99 %", "Signal / noise, dB", "Maps"]  # fmt: skip
CONFLICT_HEAD = ["Method", "Sparsity", "Outlier weights kept", "In outlier channels kept", "All others kept", "Fate decided by outlier channels"]  # fmt: skip
_SITES, _ROWS = 40, 200
READ = ("attn.in", "attn.mix", "mlp.in", "mlp.down.in")


def impact_section(costs: Costs) -> Markup:
    """The section as HTML; empty where nothing was priced."""
    if not costs.priced:
        return Markup("")
    return Markup(template("impact.html.j2").render(costs=costs_view(costs)))


def impact_links(costs: Costs) -> list[tuple[str, str]]:
    """Anchor and name of the section, for the page's navigation."""
    return [("costs", "Costs")] if costs.priced else []


def costs_view(costs: Costs) -> dict[str, Any]:
    """What the section shows."""
    conflict = conflict_rows(costs)
    half = next(
        (
            s
            for s in (0.5, *sorted({r[1] for r in conflict}, reverse=True))
            if any(r[1] == s for r in conflict)
        ),
        None,
    )
    return {
        "words": impact_words(costs),
        "notes": list(costs.notes),
        "grid_chart": Markup(impact_charts.grid_chart(costs)),
        "grid_head": drop_empty(GRID_HEAD, grid_rows(costs))[0],
        "grid": drop_empty(GRID_HEAD, grid_rows(costs))[1],
        "grid_notes": [
            line
            for r in costs["quantization_grid"]
            if r["note"] and (line := f"{r['scheme']}: {r['note']}") not in costs.notes
        ],
        "sites_chart": Markup(impact_charts.sites_chart(costs)),
        "site_head": SITE_HEAD,
        "sites": [site_row(r) for r in costs.sites[:_SITES]],
        "num_sites": len(costs.sites),
        "levels": levels_map(costs),
        "clipping": [Markup(p) for p in impact_charts.clipping_panels(costs)],
        "clipping_rows": clipping_rows(costs),
        "pruning": Markup(impact_charts.pruning_chart(costs)),
        "pruning_rows": pruning_rows(costs),
        "conflict": Markup(
            impact_charts.conflict_chart(
                [(m, rest, out, ch) for m, s, out, ch, rest, _ in conflict if s == half]
            )
        ),
        "conflict_at": f.percent(half) if half is not None else "",
        "conflict_head": CONFLICT_HEAD,
        "conflict_rows": [
            [f.tidy(m), f.percent(s), f.percent(out), f.percent(ch), f.percent(rest), f.percent(band)]
            for m, s, out, ch, rest, band in conflict
        ],
    }


def impact_words(costs: Costs) -> list[str]:
    """The costs in sentences, each with its numbers."""
    return [w for w in (_grid_words(costs), _site_words(costs), _clip_words(costs), _prune_words(costs)) if w]


def _grid_words(costs: Costs) -> str:
    if "quantization_grid" not in costs.rows:
        return ""
    if not costs.grid:
        return "No scheme could be measured on this model."
    clean = costs.original
    start = ""
    if clean is not None and known(clean["perplexity"]):
        start = f"Untouched, the perplexity is {f.number(clean['perplexity'])}. "
    told = f.listing([f"{f.tidy(r['scheme'])} {change(r)}" for r in costs.grid], limit=8)
    return f"{start}Quantizing the whole model changes the {costs.damage} ({UNITS[costs.damage]}) by: {told}."


def _site_words(costs: Costs) -> str:
    rows = [r for r in costs.sites if known(r["ci_low"]) and r["ci_low"] > 0]
    if "quantization_sites" not in costs.rows:
        return ""
    if not rows:
        return "No single site costs anything that is beyond its interval."
    r = rows[0]
    text = f"The most expensive single site is {place(r)} under {f.tidy(r['scheme'])}: {change(r)}"
    parts = [
        f"{f.percent(share)} of it is gone with the outlier {what} in full precision"
        for share, what in ((r["share_channels"], "channels"), (r["share_tokens"], "tokens"))
        if known(share)
    ]
    text += f"; {f.listing(parts)}" if parts else ""
    return f"{text}. {f.count(len(rows), 'site')} of {len(costs.sites)} cost something beyond the interval."


def _clip_words(costs: Costs) -> str:
    told = []
    for site, rows in costs.clipped.items():
        # The quantile that is usually taken, where it is there.
        worst = min(rows, key=lambda r: abs(math.log((1 - r["quantile"] + 1e-9) / 1e-3)))
        grey = costs.controls(site).get(worst["quantile"], [])
        beside = f", the controls {f.number(min(grey))} to {f.number(max(grey))}" if grey else ""
        what = impact_charts.place_name(site)
        told.append(
            f"{what} at their {f.number(worst['quantile'], digits=5)} quantile costs {change(worst)}{beside}"
        )
    return f"Clipping {f.listing(told)}." if told else ""


def _prune_words(costs: Costs) -> str:
    told = []
    for method, rows in costs.pruned.items():
        near = min(rows, key=lambda r: abs(r["sparsity"] - 0.5))
        told.append((near["change"], f"{f.tidy(method)} {change(near)}", near["sparsity"]))
    if not told:
        return ""
    at = told[0][2]
    return f"Pruning {f.percent(at)} of the weights costs: {f.listing([w for _, w, _ in sorted(told)])}."


def grid_rows(costs: Costs) -> list[list[str]]:
    """Every scheme, the untouched model first, cheapest first."""
    first = [costs.original] if costs.original is not None else []
    return [
        [
            "untouched" if r["scheme"] == ORIGINAL else f.tidy(r["scheme"]),
            "–" if r["scheme"] == ORIGINAL else change(r),
            f.number(r["perplexity"]),
            f.number(r["kl"]),
            f.percent(r["top1"]),
            f.number(r["cosine"], digits=4),
            f.percent(r["neighbours"]),
            f.number(r["num_samples"]),
        ]
        for r in [*first, *costs.grid]
    ]


def drop_empty(head: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which no row has a number; the first two stay."""
    kept = [i for i in range(len(head)) if i < 2 or any(r[i] != "–" for r in rows)]
    return [head[i] for i in kept], [[r[i] for i in kept] for r in rows]


def site_row(r: Row) -> list[str]:
    """One site's cells."""
    levels = "–"
    if known(r["central_levels"]):
        levels = f.percent(r["central_levels"])
        levels += f" of {r['num_levels']}" if r["num_levels"] is not None else ""
    source = "" if r["channels_from"] is None else f" ({r['num_channels']}, {'found' if r['channels_from'] == 'findings' else 'widest 1 %'})"  # fmt: skip
    return [
        place(r),
        f.tidy(r["scheme"] or ""),
        change(r),
        f"{f.percent(r['share_channels'])}{source}" if known(r["share_channels"]) else "–",
        f"{f.percent(r['share_tokens'])} ({r['num_tokens']})" if known(r["share_tokens"]) else "–",
        f"[{f.number(r['low'])}, {f.number(r['high'])}]",
        levels,
        f.number(r["snr_db"]),
        f.tidy(r["map"] or ""),
    ]


def levels_map(costs: Costs) -> dict[str, Any] | None:
    """Share of the levels that the central 99 % of the values use, input by layer, under the coarsest scheme; None without."""
    rows = [r for r in costs.sites if known(r["central_levels"]) and not r["site"].startswith("w.")]
    if not rows:
        return None
    means = {
        s: [r["central_levels"] for r in rows if r["scheme"] == s]
        for s in dict.fromkeys(r["scheme"] for r in rows)
    }
    scheme = min(means, key=lambda s: sum(means[s]) / len(means[s]))
    rows = [r for r in rows if r["scheme"] == scheme]
    layers = sorted({r["layer"] for r in rows})
    parts = sorted({r["site"] for r in rows}, key=lambda p: READ.index(p) if p in READ else len(READ))
    return {
        "scheme": f.tidy(scheme),
        "columns": [str(n) for n in layers],
        "dense": len(layers) > 24,
        "rows": [(part, [_level(rows, part, n) for n in layers]) for part in parts],
    }


def _level(rows: list[Row], part: str, layer: int) -> dict[str, Any] | None:
    found = [r for r in rows if (r["layer"], r["site"]) == (layer, part)]
    if not found:
        return None
    r = min(found, key=lambda r: r["central_levels"])
    return {
        "step": heat.share_step(1 - r["central_levels"]),
        "text": f"{100 * r['central_levels']:.0f}",
        "tip": f"{place(r)}: the central 99 % use {f.percent(r['central_levels'])} of the levels; range {f.number(r['low'])} to {f.number(r['high'])}",
    }


def clipping_rows(costs: Costs) -> list[list[str]]:
    """Every point of the curves with its controls."""
    return [
        [
            impact_charts.place_name(site),
            f.number(r["quantile"], digits=5),
            f.number(r["threshold"]),
            impact_charts.share_words(r["share_clipped"]) if known(r["share_clipped"]) else "–",
            change(r),
            _between(costs.controls(site).get(r["quantile"], [])),
        ]
        for site, rows in costs.clipped.items()
        for r in rows
    ]


def _between(values: list[float]) -> str:
    return f"{f.number(min(values))} to {f.number(max(values))} ({len(values)})" if values else "–"


def pruning_rows(costs: Costs) -> list[list[str]]:
    """Every point of the curves."""
    return [
        [
            f.tidy(m),
            f.tidy(r["scope"] or ""),
            f.percent(r["sparsity"]),
            f.percent(r["reached"]),
            change(r),
            f.tidy(r["note"] or ""),
        ]
        for m, rows in costs.pruned.items()
        for r in rows
    ][:_ROWS]


def conflict_rows(
    costs: Costs,
) -> list[tuple[str, float, float | None, float | None, float | None, float | None]]:
    """Method, sparsity, and over all matrices: share of outlier weights kept, of weights in outlier channels, of all others, share in the band."""
    return [
        (
            method, sparsity, _mean(rows, "share_outliers_kept", "num_outlier_weights"), _mean(rows, "share_outlier_channels_kept", "num_weights"),
            _mean(rows, "share_rest_kept", "num_weights"), _mean(rows, "share_in_band", "num_weights"),
        )
        for (method, sparsity), rows in costs.conflicts.items()
    ]  # fmt: skip


def _mean(rows: list[Row], column: str, weight: str) -> float | None:
    """Over the matrices, by their number of weights."""
    pairs = [(r[column], r[weight]) for r in rows if known(r[column]) and r[weight]]
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total else None
