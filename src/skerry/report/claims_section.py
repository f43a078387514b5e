"""The report's section on the literature: every claim with its verdict, effect, interval and reason; refuted as prominent as supported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from . import formatting as f
from .spec_chart import figure
from .trace_data import Row, interval, plain
from .trace_sections import template
from .trace_words import VERDICTS, claim_words

# A shape for each verdict, so that nothing hangs on colour.
MARKS = {"supported": "✓", "refuted": "✗", "inconclusive": "?", "not applicable": "–"}


def claims_section(claims: Sequence[Any] | None) -> Markup:
    """The section as HTML; empty where no claims were judged.

    Args:
        claims: Results in the order of their ids, as mappings or as objects with `model_dump`.
    """
    if not claims:
        return Markup("")
    rows = [plain(c) for c in claims]
    count = Counter(str(r["verdict"]) for r in rows)
    order = [v for v in ("supported", "refuted", "inconclusive", "not applicable") if v in count]
    return Markup(
        template("claims.html.j2").render(
            words=claim_words(rows),
            counts=[(v, MARKS[v], count[v]) for v in order],
            claims=[claim_view(r) for r in rows],
        )
    )


def claim_view(r: Row) -> dict[str, Any]:
    """A claim's texts as the page shows them."""
    verdict = f.tidy(str(r["verdict"]))
    seconds = r.get("seconds")
    facts = [
        (name, f.tidy(str(r[key])))
        for name, key in (
            ("Source", "source"),
            ("Section of the review", "section"),
            ("Measured", "measured"),
            ("Rule", "rule"),
        )
        if r.get(key)
    ]
    if seconds is not None:
        facts.append(("Time", f.seconds(seconds)))
    return {
        "id": f.tidy(str(r["id"])),
        "verdict": verdict,
        "cls": verdict.replace(" ", "-") if verdict in VERDICTS else "other",
        "mark": MARKS.get(verdict, "?"),
        "statement": f.tidy(str(r.get("statement") or "")),
        "why": f.tidy(str(r.get("why") or "")),
        "effect_name": f.tidy(str(r.get("effect_name") or "effect")),
        "effect": f.number(r["effect"]) if r.get("effect") is not None else "",
        "unit": f.tidy(str(r.get("unit") or "")),
        "interval": interval(r).strip(),
        "figure": Markup(figure(r.get("figure"))),
        "facts": facts,
    }
