"""The report's sections on causes: where outliers come from, what they cause, what sinks are for. HTML, all text escaped.

A section is there when the run has its tables; when they are empty it says plainly that nothing was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from . import formatting as f
from . import heat, layerplot, lifecycle
from .effect_charts import controls, dose_panels, forest, role_forest, strongest
from .lifecycle_cards import signed_percent, story
from .trace_data import Row, Trace, interval, part_name
from .trace_words import effect_words, origin_paragraphs, role_words

OUTCOMES = ("sink mass", "value norm ratio", "outlier")
LETTERS = {
    "implicit scaling": "S", "context-aware bias": "C", "fixed bias": "B", "mixed": "M", "undecided": "?", "no role": "·",
}  # fmt: skip
_DIAGRAMS, _GROWTH, _ROWS, _HEADS = 4, 120, 80, 60


def trace_sections(trace: Trace) -> Markup:
    """The sections that the trace has tables for, as HTML; empty without any."""
    parts = {"origin": origin(trace), "effects": effects(trace), "roles": roles(trace)}
    return Markup(template("trace.html.j2").render(**parts)) if any(parts.values()) else Markup("")


def trace_links(trace: Trace) -> list[tuple[str, str]]:
    """Anchors and names of these sections, for the page's navigation."""
    found = [("origin", "Origin", trace.traced), ("effects", "Effects", _has_effects(trace))]
    found.append(("roles", "Roles", "role_verdicts" in trace.rows))
    return [(anchor, name) for anchor, name, is_there in found if is_there]


@cache
def template(name: str) -> Any:
    """A template of the report, escaping everything that is not markup of our own."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _source(name: str) -> str:
    return (files("skerry.report") / "templates" / name).read_text("utf-8")


def origin(trace: Trace) -> dict[str, Any] | None:
    """What the section on birth and end shows; None when no trace was made."""
    if not trace.traced:
        return None
    return {
        "words": origin_paragraphs(trace),
        "notes": [f.tidy(n) for n in trace.notes],
        "diagrams": [_diagram(trace, n) for n in trace.families()[:_DIAGRAMS]],
        "panels": [Markup(p) for p in layerplot.panels(trace)],
        "carriers": [carrier_row(trace, c) for c in trace.carriers],
        "growth": growth_rows(trace, trace.families()[:1]),
        "all_growth": growth_rows(trace, [c["carrier"] for c in trace.carriers]),
        "weights": weight_rows(trace),
        "courses": course_rows(trace),
    }


def _diagram(trace: Trace, number: int) -> dict[str, Any]:
    return {
        "title": story(trace, number).title,
        "figure": Markup(lifecycle.figure(trace, number)),
        "caption": Markup(lifecycle.caption(trace, number)),
    }


def carrier_row(trace: Trace, c: Row) -> list[str]:
    """One line of the table of outliers."""
    birth = "embedding" if c["birth_layer"] is None else str(c["birth_layer"])
    leaving = "stays" if c["exit_layer"] is None else str(c["exit_layer"])
    tokens = f.listing(trace.tokens(c["carrier"]), limit=3) or "–"
    cells = [str(c["channel"]), f.tidy(c["kind"] or "–"), tokens, birth, f.number(c["peak_layer"]), leaving]
    return [
        *cells,
        f.number(c["peak"]),
        f.ratio(c["ratio"]),
        f.percent(c["recurrence"]),
        f.percent(c["cancellation"]),
    ]


def growth_rows(trace: Trace, numbers: Sequence[int]) -> list[list[str]]:
    """Terms of the blocks of birth and exit of some carriers, with their strongest experts, heads and neurons."""
    out = []
    for number in numbers:
        for event in ("birth", "exit"):
            for level in ("block", "expert", "head", "neuron"):
                rows = trace.growth(number, event, level)[: 6 if level == "block" else 4]
                out += [_growth_row(trace.carrier(number), event, r) for r in rows]
    return out[:_GROWTH]


def _growth_row(c: Row, event: str, r: Row) -> list[str]:
    expert = f" of expert {r['expert']}" if r["expert"] is not None and r["level"] != "expert" else ""
    number = r["index"] if r["index"] is not None else r["expert"] if r["level"] == "expert" else None
    name = part_name(r["part"]) if number is None else f"{r['level']} {number}{expert}"
    place = f"{event}, embedding" if r["layer"] is None else f"{event}, block {r['layer']}"
    return [
        str(c["channel"]),
        place,
        name,
        f.number(r["value"]),
        signed_percent(r["share"]),
        _bounds(r, share=True),
    ]


def _bounds(row: Row, *, share: bool = False) -> str:
    if row["low"] is None or row["high"] is None:
        return "–"
    return (
        f"{signed_percent(row['low'])} to {signed_percent(row['high'])}" if share else interval(row).strip()
    )


def weight_rows(trace: Trace) -> list[list[str]]:
    """Entries of down projections that carry growth."""
    out = []
    for c in trace.carriers:
        for w in trace.weights(c["carrier"])[:8]:
            expert = f"[{w['expert']}]" if w["expert"] is not None else ""
            share = "–" if w["share"] is None else signed_percent(w["share"])
            out.append(
                [
                    f"w.down{expert}[{w['row']}, {w['column']}]",
                    f.number(w["layer"]),
                    f.number(w["value"]),
                    share,
                    f.percent(w["cumulative"]),
                ]
            )
    return out[:_GROWTH]


def course_rows(trace: Trace) -> list[list[str]]:
    """The table behind the layer plot."""
    return [
        [
            str(c["channel"]),
            f"{r['layer']}.{r['site']}",
            *(f.number(r[k]) for k in ("value", "low", "high", "other")),
        ]
        for c in trace.carriers[: layerplot.MOST]
        for _, r in layerplot.points(trace, c["carrier"])
    ]


def _has_effects(trace: Trace) -> bool:
    return "effects" in trace.rows


def effects(trace: Trace) -> dict[str, Any] | None:
    """What the section on interventions shows; None when none were asked for."""
    if not _has_effects(trace):
        return None
    outcomes = [o for o in (trace.damage, *OUTCOMES) if o is not None]
    rows = strongest(trace.effects())
    return {
        "words": effect_words(trace),
        "forests": [Markup(p) for o in outcomes if (p := forest(trace, o))],
        "doses": [Markup(p) for p in dose_panels(trace)],
        "rows": [effect_row(trace, r) for r in rows[:_ROWS]],
        "total": f.count(len(trace.effects()), "row") if len(rows) <= _ROWS else f"{_ROWS} of {len(rows):,}",
        "spread": spread_rows(trace),
    }


def effect_row(trace: Trace, r: Row) -> list[str]:
    """One intervention and one outcome."""
    place = (
        f"{r['layer']}.{r['site']}"
        if r["layer"] is not None and r["site"]
        else f.tidy(r["site"] or "many blocks")
    )
    outcome = r["outcome"] + ("" if r["outcome_layer"] is None else f", block {r['outcome_layer']}")
    grey = [c["change"] for c in controls(trace, r)]
    null = "–" if not grey else f"{f.number(min(grey))} to {f.number(max(grey))}"
    change = f"{f.number(r['change'])}{interval(r)}"
    return [
        f.tidy(r["group"] or "–"),
        f.tidy(r["arm"] or "–"),
        place,
        outcome,
        f.number(r["clean"]),
        f.number(r["value"]),
        change,
        null,
        f.p_value(r["p_value"]),
    ]


def spread_rows(trace: Trace) -> list[list[str]]:
    """Every measure of the spread where it is largest."""
    out = []
    for measure in dict.fromkeys(r["measure"] for r in trace["spread"]):
        rows = trace.spread(measure)
        if not rows:
            continue
        top, low = max(rows, key=lambda r: r["value"]), min(rows, key=lambda r: r["value"])
        place = f"block {top['layer']}" + (f", head {top['head']}" if top["head"] is not None else "")
        out.append(
            [
                f.tidy(measure),
                place,
                f.number(top["value"]),
                f.number(top["other"]),
                _bounds(top),
                f"{f.number(low['value'])} (block {low['layer']})",
            ]
        )
    return out


def roles(trace: Trace) -> dict[str, Any] | None:
    """What the section on roles shows; None when it was not asked."""
    if "role_verdicts" not in trace.rows:
        return None
    columns, grid = verdict_grid(trace)
    # The outcome that decided; where there is no verdict, the first that was measured.
    deciding = [r["outcome"] for t in ("role_verdicts", "roles") for r in trace[t] if r["level"] == "model"]
    outcome = next((o for o in deciding if o is not None), None)
    used = {c["letter"] for _, cells in grid for c in cells if c is not None}
    return {
        "words": role_words(trace),
        "forest": Markup(role_forest(trace, outcome)) if outcome is not None else "",
        "model": arm_rows(trace, outcome),
        "model_caption": f"Whole model, change of the {outcome or 'outcome'}. Each arm leaves of the sinks only what its hypothesis calls for (both frozen: a constant; neither: nothing): a small change means that this is enough.",
        "grid": grid,
        "columns": columns,
        "key": ", ".join(f"{letter} {name}" for name, letter in LETTERS.items() if letter in used) + ".",
        "heads": head_rows(trace),
        "measures": [
            [f.tidy(r["measure"]), f.number(r["value"]), _bounds(r)]
            for r in trace["role_measures"]
            if r["layer"] is None and r["value"] is not None
        ],
    }


def arm_rows(trace: Trace, outcome: str | None) -> list[list[str]]:
    """The arms of the whole model with their matched controls."""
    rows = [r for r in trace["roles"] if r["level"] == "model" and r["change"] is not None]
    out = []
    for r in sorted(rows, key=lambda r: (r["outcome"] != outcome, r["outcome"] or "")):
        null = {"low": r["control_low"], "high": r["control_high"]}
        control = f"{f.number(r['control'])}{interval(null)}" if r["control"] is not None else "–"
        name = f.tidy(r["arm"] or "–") + ("" if r["outcome"] == outcome else f" ({r['outcome']})")
        out.append([name, f"{f.number(r['change'])}{interval(r)}", control])
    return out


def verdict_grid(trace: Trace) -> tuple[list[int], list[tuple[int, list[dict[str, Any] | None]]]]:
    """Layer x head: the letter of a head's verdict, on the step of its strength."""
    rows = [
        r
        for r in trace["role_verdicts"]
        if r["level"] == "head" and r["verdict"] and r["layer"] is not None and r["head"] is not None
    ]
    cells = {(r["layer"], r["head"]): _cell(r) for r in rows}
    columns = sorted({head for _, head in cells})
    return columns, [
        (layer, [cells.get((layer, head)) for head in columns]) for layer in sorted({k[0] for k in cells})
    ]


def _cell(r: Row) -> dict[str, Any]:
    strength = (
        f", strength {f.number(r['strength'], digits=2)}{interval(r, digits=2)}"
        if r["strength"] is not None
        else ""
    )
    tip = f"layer {r['layer']}, head {r['head']}: {f.tidy(r['verdict'])}{strength}"
    return {"letter": LETTERS.get(r["verdict"], "?"), "step": heat.share_step(r["strength"]), "tip": tip}


def head_rows(trace: Trace) -> list[list[str]]:
    """Heads with their verdicts, strongest first."""
    measured: dict[tuple[Any, Any, Any], float | int | None] = {
        (r["layer"], r["head"], r["measure"]): r["value"] for r in trace["role_measures"]
    }
    rows: Sequence[Row] = [r for r in trace["role_verdicts"] if r["level"] == "head" and r["verdict"]]
    out = []
    for r in sorted(rows, key=lambda r: -(r["strength"] if r["strength"] is not None else -1))[:_HEADS]:
        place = r["layer"], r["head"]
        mass, norm = (measured.get((*place, m)) for m in ("sink mass", "value norm ratio"))
        out.append(
            [
                f"{place[0]}.{place[1]}",
                f.tidy(r["verdict"]),
                f.tidy(r["why"] or "–"),
                f.number(r["strength"], digits=2),
                _bounds(r),
                f.percent(mass),
                f.number(norm, digits=2),
            ]
        )
    return out
