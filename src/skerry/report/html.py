"""The report: one HTML file with its styles, script and data inside; it opens from a disk with no network.

All text passes the template's escaping; tokens are made inert before (`formatting.visible`); the data is JSON that cannot close its script
element. The content security policy in the page forbids every connection, so even a mistake here could not load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from skerry.outliers.finding import Summary

from . import heat
from .claims_section import claims_section
from .data import Tables, complete
from .impact_data import costs_from_tables
from .impact_sections import impact_links, impact_section
from .page import context
from .tame_sections import tame_links, tame_section
from .trace_data import from_tables
from .trace_sections import trace_links, trace_sections
from .twins import twins_section


def html(
    summary: Summary,
    tables: Tables,
    *,
    record: Mapping[str, Any] | None = None,
    claims: Sequence[Any] | None = None,
    notes: Sequence[str] = (),
    cost_notes: Sequence[str] = (),
) -> str:
    """The report as the text of one HTML file.

    Args:
        summary: What was found.
        tables: Tables of the run by name (`run/tables.py`); absent ones count as empty.
        record: What the run knows of how it was made (command, versions, seed, ...); shown as it is, `command` first.
        claims: Results of the claims, if they were judged; the section is there only then.
        notes: What the trace could not measure, in its own words.
        cost_notes: The same of costs; see `skerry.report.impact_data.stage_notes`.
    """
    page = page_parts()
    costs = costs_from_tables(tables, notes=cost_notes, model=summary.model.name)
    trace = from_tables(
        tables, claims=claims, notes=notes, model=summary.model.name, num_tokens=summary.model.num_tokens
    )
    return _template().render(
        **context(summary, complete(tables), record or {}),
        twins=twins_section(tables),
        causes=trace_sections(trace),
        costs=impact_section(costs),
        tamed=tame_section(costs),
        claims=claims_section(trace.claims),
        links=[
            *([("twins", "Twins")] if "twins" in tables and tables["twins"].num_rows else []),
            *trace_links(trace),
            *impact_links(costs),
            *tame_links(costs),
            *([("claims", "Claims")] if trace.claims else []),
        ],
        **page,
    )


def page_parts(script_name: str = "report.js") -> dict[str, Any]:
    """Style and script of a page, and the hash by which only this very script may run."""
    script = _asset(script_name)
    style = _asset("report.css").replace("/*heat*/", _heat_css())
    return {
        "style": Markup(style + _asset("trace.css") + _asset("impact.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


@cache
def _template() -> Any:
    environment = Environment(
        loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        (files("skerry.report") / "templates" / "report.html.j2").read_text("utf-8")
    )


@cache
def _asset(name: str) -> str:
    return (files("skerry.report") / "assets" / name).read_text("utf-8")


def _heat_css() -> str:
    """The colour of every step, light and dark, from the one scale."""
    light = "".join(f"--h{i}:{c};--i{i}:{heat.ink(i)};" for i, c in enumerate(heat.LIGHT))
    dark = "".join(f"--h{i}:{c};--i{i}:{heat.ink(i, dark=True)};" for i, c in enumerate(heat.DARK))
    steps = "".join(
        f".h{i}{{background:var(--h{i});color:var(--i{i})}}svg .heat{i}{{fill:var(--h{i})}}svg .heatink{i}{{fill:var(--i{i})}}"
        for i in range(heat.NUM_STEPS)
    )
    system = f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
    return f":root{{{light}}}:root[data-theme=dark]{{{dark}}}{system}{steps}"
