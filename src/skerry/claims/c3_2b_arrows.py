"""3.2b  Attention outliers cause activation outliers downstream; and the reverse arrow.

Sinks are taken out of the attention (their mass given to the other keys), and the outlier of the residual stream is read in the later block
where it is largest; the reverse: the outlier is set to zero behind every block where it lives (a model may write again what is only taken away at
the birth), and the mass on sinks is read in the block where it is largest.
The statement is judged by the first arrow: a cause that is taken away takes most of its effect along. The reverse arrow is said and drawn.
"""

from __future__ import annotations

from typing import Any

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict
from skerry.claims.effects import WITHOUT, by_mask, gone, group, strongest
from skerry.claims.evidence import Evidence, Row
from skerry.claims.words import number, percent_span

MOST, HARDLY = 0.5, 0.1


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    forward = _arrow(group(evidence, "sink"), "outlier")
    if forward is None:
        raise NotApplicable("no outlier was read in a block after one whose sinks were taken out")
    ours = gone(forward)
    verdict: Verdict = "inconclusive"
    if ours.low > MOST:
        verdict = "supported"
    elif ours.high < HARDLY:
        verdict = "refuted"
    why = f"Without attention on sinks {percent_span(ours)} of the outlier behind block {forward['outcome_layer']} is gone{_null(forward)}."
    arrows = {"no sinks: outlier": ours}
    try:
        back = _arrow([r for r in group(evidence, "birth") if r["arm"] == WITHOUT], "sink mass")
    except NotApplicable:
        back = None
    if back is not None:
        reverse = gone(back)
        arrows["no outlier: sinks"] = reverse
        why += f" The reverse arrow: without the outlier {percent_span(reverse)} of the mass on sinks of block {back['outcome_layer']} is gone{_null(back)}."
    else:
        why += " The reverse arrow was not measured."
    return Judged(verdict, why + by_mask(evidence), ours, _figure(arrows))


def _arrow(rows: list[Row], outcome: str) -> Row | None:
    """The row that tells most: the outcome in a block at or after the change, where it is largest in the untouched model."""
    later = [
        r
        for r in rows
        if not r["control"]
        and r["outcome"] == outcome
        and (r["layer"] is None or r["outcome_layer"] is None or r["outcome_layer"] >= r["layer"])
    ]
    return strongest(later)


def _null(row: dict[str, Any]) -> str:
    return "" if row["p_value"] is None else f" (against controls p = {number(row['p_value'])})"


def _figure(arrows: dict[str, Interval]) -> Figure:
    return Figure(
        kind="interval",
        x=tuple(arrows),
        y=tuple(g.value for g in arrows.values()),
        low=tuple(g.low for g in arrows.values()),
        high=tuple(g.high for g in arrows.values()),
        title="Which arrow holds: share of the one that is gone without the other",
        x_title="what was taken away: what was read",
        y_title="share gone",
    )


CLAIM = Claim(
    id="3.2b",
    section="3.2",
    source="The review, section 3.2; An et al. 2025 (arXiv 2502.06415)",
    statement="Attention outliers cause activation outliers downstream.",
    measured="Share of the residual stream's outlier that is gone when attention on sinks is taken out; for the reverse arrow, share of the mass on "
    "sinks that is gone when the outlier is set to zero in every block where it lives.",
    rule="Supported when the whole 95 % interval over inputs lies above 0.5 (most of the outlier goes with the sinks), refuted when it lies below "
    "0.1 (hardly any does), else inconclusive. The reverse arrow is reported and decides nothing.",
    effect_name="outlier gone without sinks",
    unit="share",
    needs=("effects",),
    judge=judge,
)
