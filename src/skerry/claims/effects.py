"""Reading the table of effects: arms of interventions, their outcomes, and the controls that make the null.

The names are those that `skerry.causes.effects` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from skerry.causes.bootstrap import Interval
from skerry.causes.notes import ALONE
from skerry.claims.claim import NotApplicable
from skerry.claims.evidence import Evidence, Row
from skerry.claims.stages import stage_of

WITHOUT = "zero in every block"
QUERY_KEY, FEED_FORWARD = "query/key weights shrunk", "feed-forward weights zeroed"
REMOVED, CONSTANT = "outliers zeroed", "outliers to mean"
EQUALLY_MANY, EQUAL_ENERGY = "random values, equally many", "random values, equal energy"
DAMAGE = ("loss", "distance", "kl")
"""Outcomes that say how much a change hurts, the first that was measured counts; an encoder without a head has the distance only."""
UNITS = {
    "loss": "nats per token",
    "kl": "nats per token",
    "distance": "of the last hidden states, in variances",
}


def group(evidence: Evidence, name: str, *, table: str = "effects") -> list[Row]:
    """The rows of one group of interventions that have a number.

    Args:
        evidence: The run.
        name: The group.
        table: `effects`, or a table with its columns.

    Raises:
        NotApplicable: There are none; the notes say why.
    """
    rows = [r for r in evidence.rows(table) if r["group"] == name and r["change"] is not None]
    if not rows:
        said = "; ".join(evidence.notes.get(stage_of(table) or "", ()))
        raise NotApplicable(f"no intervention of the group {name!r} was made{': ' + said if said else ''}")
    return rows


def arm(rows: Iterable[Row], name: str, outcome: str, *, control: bool | None = None) -> list[Row]:
    """The rows of one arm and outcome; of controls only, or of none, where asked for."""
    return [
        r
        for r in rows
        if r["arm"] == name and r["outcome"] == outcome and (control is None or bool(r["control"]) is control)
    ]


def damage_of(rows: Iterable[Row]) -> str:
    """The outcome that says how much a change hurts.

    Raises:
        NotApplicable: None was measured.
    """
    seen = {r["outcome"] for r in rows}
    found = next((name for name in DAMAGE if name in seen), None)
    if found is None:
        raise NotApplicable("neither a loss nor a distance was measured")
    return found


def change(row: Row) -> Interval:
    """The change that an arm made, with its interval over inputs."""
    ends = (math.nan if row[k] is None else row[k] for k in ("change", "low", "high"))
    return Interval(*ends)


def gone(row: Row) -> Interval:
    """Share of an outcome that an arm took away: -change / clean."""
    value, low, high = change(row)
    clean = abs(row["clean"])
    if not clean > 0:
        return Interval(math.nan, math.nan, math.nan)
    return (
        Interval(-value / clean, -high / clean, -low / clean)
        if row["clean"] > 0
        else Interval(value / clean, low / clean, high / clean)
    )


def strongest(rows: Iterable[Row]) -> Row | None:
    """Of rows of one arm that were read in several blocks, the block where the outcome is largest in the untouched model."""
    found = [r for r in rows if r["clean"] is not None and math.isfinite(r["clean"])]
    return max(found, key=lambda r: abs(r["clean"]), default=None)


def by_mask(evidence: Evidence) -> str:
    """A sentence where the mask decides what attention can do to the outlier; empty elsewhere."""
    return f" But {ALONE}." if ALONE in evidence.notes.get("effects", ()) else ""
