"""The report's section on taming: before and after in one picture, the table of methods, the proof, what was left alone. HTML, all text escaped.

A run of `skerry tame` has no scan; `tame_html` makes a page of its own from it, with the same sections.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from . import formatting as f
from . import tame_charts
from .impact_data import FLOAT, PLAIN, UNITS, Costs, change, costs_from_run, ends
from .impact_sections import drop_empty, impact_section
from .page import flatten
from .trace_data import Row, known
from .trace_sections import template

if TYPE_CHECKING:
    from skerry.run import Run

METHOD_HEAD = ["Method", "Damage and 95 % interval", "Perplexity", "KL", "Same top token", "Cosine", "Same neighbours", "Time"]  # fmt: skip
SEAM_HEAD = ["Seam", "Range before", "Range after", "Threshold", "Scale", "Channels scaled", "Largest shift", "Search loss before", "after", "Tried"]  # fmt: skip
CHECKS = {"float64": "Proof before folding", "stored": "Outputs after folding"}
_SEAMS, _NOTES, _NAMED = 80, 40, 6


def tame_section(costs: Costs) -> Markup:
    """The section as HTML; empty where nothing was tamed."""
    return Markup(template("tame.html.j2").render(tame=tame_view(costs))) if costs.tamed else Markup("")


def tame_links(costs: Costs) -> list[tuple[str, str]]:
    """Anchor and name of the section, for the page's navigation."""
    return [("tamed", "Tamed")] if costs.tamed else []


def tame_html(run: Run) -> str:
    """The page of a run of `skerry tame`, which has no scan: one HTML file with everything inside.

    Args:
        run: The run.
    """
    from .html import page_parts

    costs = costs_from_run(run)
    told = costs.document
    record = run.record
    facts = [
        ("Model", costs.model),
        *((k.capitalize(), f.tidy(str(told[k]))) for k in ("scheme", "asked") if told.get(k)),
        ("Text", corpus_words(told)),
        *(
            (name, str(told[key]))
            for name, key in (
                ("Calibration inputs", "calibration_inputs"),
                ("Held-out inputs", "held_out_inputs"),
            )
            if told.get(key)
        ),
    ]
    return str(
        template("tame_page.html.j2").render(
            **page_parts("page.js"),
            title=f.tidy(costs.model or "tamed model"),
            headline=headline(costs),
            costs=impact_section(costs),
            tamed=tame_section(costs),
            command=f.tidy(command_line(record.facts.get("command"))),
            run=f.tidy(str(run.path)),
            facts=[(name, value) for name, value in facts if value],
            record=flatten(record.facts),
        )
    )


def command_line(told: Any) -> str:
    """The command that made a run, as one would type it."""
    if isinstance(told, Sequence) and not isinstance(told, str):
        return shlex.join(map(str, told))
    return str(told or "skerry tame")


def headline(costs: Costs) -> str:
    """One line: what was chosen, and what it costs beside plain rounding."""
    words = method_words(costs)
    return words[0] if words else "Nothing could be measured."


def corpus_words(document: Mapping[str, Any]) -> str:
    """The text that was read, from its card or its name."""
    corpus = document.get("corpus")
    if isinstance(corpus, Mapping):
        return f.tidy(str(corpus.get("corpus", corpus.get("name", ""))))
    return f.tidy(str(corpus or ""))


def tame_view(costs: Costs) -> dict[str, Any]:
    """What the section shows."""
    seams = costs.seams()
    seam_rows = [seam_row(r) for r in sorted(seams, key=lambda r: -(_gain(r) or 0.0))]
    method = next((r["method"] for r in seams), None)
    return {
        "words": method_words(costs),
        "figures": [
            Markup(p)
            for p in (
                tame_charts.ranges_chart(costs),
                tame_charts.strip_chart(costs),
                tame_charts.bits_chart(costs),
            )
            if p
        ],
        "shown_method": f.tidy(method or ""),
        "method_groups": method_groups(costs),
        "refused": [
            (f.tidy(r["method"]), f.tidy(r["scheme"] or ""), f.tidy(r["note"] or "no number"))
            for r in costs.refused
        ],
        "equal": [equal_line(r) for r in costs["equivalence"]],
        "overhead": [overhead_line(r) for r in costs["overhead"]],
        "seam_head": drop_empty(SEAM_HEAD, seam_rows)[0],
        "seams": drop_empty(SEAM_HEAD, seam_rows)[1][:_SEAMS],
        "num_seams": len(seam_rows),
        "skipped": skipped_lines(costs),
        "parts": part_rows(costs),
        "export": export_lines(costs),
        "notes": list(costs.tame_notes[:_NOTES]),
        "more_notes": max(0, len(costs.tame_notes) - _NOTES),
    }


def _gain(r: Row) -> float | None:
    both = known(r["range_before"]) and known(r["range_after"]) and r["range_after"] > 0
    return r["range_before"] / r["range_after"] if both else None


def method_words(costs: Costs) -> list[str]:
    """What was chosen and what it brings, in sentences."""
    best, out = costs.best, []
    schemes = [s for s in costs.schemes if s != FLOAT]
    for scheme in schemes:
        found = costs.methods[scheme]
        plain = next((found[m][0] for m in PLAIN if m in found), None)
        ours = found.get(best or "")
        if not ours or best in PLAIN:
            continue
        beside = f", without {change(plain)}" if plain is not None else ""
        out.append(f"{f.tidy(scheme)}: with {f.tidy(best or '')} {change(ours[0])}{beside}")
    unit = f"{costs.damage} ({UNITS[costs.damage]})"
    text = [f"Change of the {unit} beside the untouched model: {'; '.join(out)}."] if out else []
    if not out and schemes:
        every = [r for s in schemes for rows in costs.methods[s].values() for r in rows]
        told = f.listing(
            [f"{f.tidy(r['method'])} under {f.tidy(r['scheme'])} {change(r)}" for r in every], limit=6
        )
        text = [f"Change of the {unit} beside the untouched model: {told}."]
    if costs.document.get("why"):
        text.append(f"Chosen: {f.tidy(str(costs.document['why']))}.")
    rows = [r for r in costs.seams() if _gain(r) is not None]
    if rows:
        most = max(rows, key=lambda r: _gain(r) or 0.0)
        text.append(
            f"{f.count(len(rows), 'seam')} changed; at {f.tidy(most['seam'])} the range falls from {f.number(most['range_before'])} to {f.number(most['range_after'])}."
        )
    return text


def method_groups(costs: Costs) -> list[dict[str, Any]]:
    """The table of methods: a group for each scheme, fewest bits last, in each the cheapest damage first."""
    groups = []
    shown = drop_empty(METHOD_HEAD, [method_row(r) for s in costs.schemes for r in _by_damage(costs, s)])[0]
    gone = [i for i, h in enumerate(METHOD_HEAD) if h not in shown]
    for scheme in costs.schemes:
        rows = _by_damage(costs, scheme)
        name = "not quantized" if scheme == FLOAT else f.tidy(scheme)
        cells = [[c for i, c in enumerate(method_row(r)) if i not in gone] for r in rows]
        groups.append(
            {
                "scheme": name,
                "head": shown,
                "rows": [(bool(r["chosen"]), c) for r, c in zip(rows, cells, strict=True)],
            }
        )
    return groups


def _by_damage(costs: Costs, scheme: str) -> list[Row]:
    return sorted((r for rows in costs.methods[scheme].values() for r in rows), key=lambda r: r["change"])


def method_name(r: Row) -> str:
    """How a method is called."""
    name = "no method" if r["method"] == "none" else f.tidy(r["method"])
    return f"{name} (chosen)" if r["chosen"] else name


def method_row(r: Row) -> list[str]:
    """One method's cells."""
    return [
        method_name(r),
        change(r),
        f.number(r["perplexity"]),
        f.number(r["kl"]),
        f.percent(r["top1"]),
        f.number(r["cosine"], digits=4),
        f.percent(r["neighbours"]),
        f.seconds(r["seconds"]) if known(r["seconds"]) else "–",
    ]


def equal_line(r: Row) -> tuple[bool, str]:
    """Whether an error is within its bound, and the line that says so."""
    good = known(r["error"]) and known(r["bound"]) and r["error"] <= r["bound"]
    what = CHECKS.get(r["check"], f.tidy(r["check"] or "check"))
    side = "within" if good else "ABOVE"
    tokens = f", {f.count(r['num_tokens'], 'token')}" if r["num_tokens"] is not None else ""
    return (
        good,
        f"{f.tidy(r['method'])}: {what.lower()} in {f.tidy(r['dtype'] or '')}, relative error {f.number(r['error'], digits=2)}, {side} the bound {f.number(r['bound'], digits=2)}{tokens}",
    )


def overhead_line(r: Row) -> str:
    """What a method costs at run time."""
    more = (r["parameters_after"] or 0) - (r["parameters_before"] or 0)
    added = f.count(r["operations_added"] or 0, "operation")
    times = (
        f"a forward takes {f.number(r['seconds_after'] / r['seconds_before'])} times as long ({f.number(r['seconds_before'])} s before, {f.number(r['seconds_after'])} s after)"
        if known(r["seconds_before"]) and known(r["seconds_after"]) and r["seconds_before"] > 0
        else "the time of a forward was not measured"
    )
    return f"{f.tidy(r['method'])}: {added} and {f.count(more, 'parameter')} added; {times}"


def seam_row(r: Row) -> list[str]:
    """One changed seam's cells."""
    threshold = f.number(r["threshold"])
    if known(r["threshold_low"]):
        threshold = f"[{f.number(r['threshold_low'])}, {threshold}]"
    scale = f"{f.number(r['scale_min'])} to {f.number(r['scale_max'])}" if known(r["scale_min"]) else "–"
    return [
        f.tidy(r["seam"]),
        f.number(r["range_before"]),
        f.number(r["range_after"]),
        threshold,
        scale,
        f.number(r["num_scaled"]),
        f.number(r["shift_max"]),
        f.number(r["loss_before"]),
        f.number(r["loss_after"]),
        f.number(r["candidates"]),
    ]


def skipped_lines(costs: Costs) -> list[str]:
    """Why seams were left alone: a reason, the seams, the method."""
    out = []
    for method, reason, seams in costs.skipped:
        named = f.listing(seams, limit=_NAMED)
        out.append(f"{f.tidy(method)}: {f.tidy(named)}: {f.tidy(reason)}")
    return out


def part_rows(costs: Costs) -> list[list[str]]:
    """The steps of a comparison that adds one part at a time."""
    rows = sorted(costs["parts"], key=lambda r: (r["scheme"] or "", r["step"] or 0))
    return [
        [
            f.tidy(r["part"] or ""),
            f.tidy(r["scheme"] or ""),
            f.number(r["loss"]),
            f"{f.number(r['change'])}{ends(r)}",
        ]
        for r in rows
    ]


def export_lines(costs: Costs) -> list[str]:
    """Where the export is, and what reading it back gave."""
    told = costs.export
    if not told:
        return []
    lines = [f"{f.tidy(str(told.get('form', 'checkpoint')))} in {f.tidy(str(told.get('path', '')))}"]
    if told.get("readback_error") is not None:
        bound = (
            f", bound {f.number(told['readback_bound'], digits=2)}"
            if told.get("readback_bound") is not None
            else ""
        )
        lines.append(
            f"read back by {f.tidy(str(told.get('loaded_as', 'another loader')))}: relative error {f.number(told['readback_error'], digits=2)}{bound}"
        )
    return [*lines, *(f.tidy(str(n)) for n in told.get("notes", ()))]
