"""3.2a  Large weights in the query and key projections start the chain (the review) - or it starts in the feed-forward layer (An et al.).

Both are tried on this model: the large query and key weights are shrunk in one arm, the feed-forward weights that carry the growth are zeroed in
the other, and the outlier of the residual stream is read where it is largest. With g the share of the outlier that is gone,

    supported      g(query/key) > 1/2 with its whole interval, and above g(feed-forward)
    refuted        g(query/key) < 1/2 with its whole interval: the outlier comes without them
    inconclusive   else

What the block where outliers are born adds up to (attention against feed-forward) is said with the verdict.
"""

from __future__ import annotations

import math

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict
from skerry.claims.effects import FEED_FORWARD, QUERY_KEY, arm, by_mask, gone, group, strongest
from skerry.claims.evidence import Evidence
from skerry.claims.words import percent, percent_span

BAR = 0.5


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    rows = group(evidence, "start")
    found = {
        name: gone(row)
        for name in (QUERY_KEY, FEED_FORWARD)
        if (row := strongest(arm(rows, name, "outlier", control=False))) is not None
    }
    if QUERY_KEY not in found:
        raise NotApplicable(f"no outlier was read after the arm {QUERY_KEY!r}")
    ours, rival = found[QUERY_KEY], found.get(FEED_FORWARD, Interval(math.nan, math.nan, math.nan))
    why = (
        f"With large query and key weights shrunk {percent_span(ours)} of the outlier is gone, with the feed-forward weights that write it zeroed "
        f"{percent_span(rival)}.{_births(evidence)}{by_mask(evidence)}"
    )
    return Judged(_verdict(ours, rival), why, ours, _figure(found))


def _verdict(ours: Interval, rival: Interval) -> Verdict:
    if ours.high < BAR:
        return "refuted"
    return "supported" if ours.low > BAR and not ours.low <= rival.high else "inconclusive"


def _births(evidence: Evidence) -> str:
    """Attention against feed-forward in the blocks where outliers are born, mean over outliers."""
    rows = [
        r for r in evidence.tables["growth"].to_pylist() if r["event"] == "birth" and r["level"] == "block"
    ]
    carriers = {r["carrier"] for r in rows}
    if not carriers:
        return ""
    of = {
        part: math.fsum(r["share"] for r in rows if r["part"] == part) / len(carriers)
        for part in ("attn.out", "mlp.out")
    }
    return f" Of the growth at birth the feed-forward writes {percent(of['mlp.out'])}, attention {percent(of['attn.out'])}."


def _figure(found: dict[str, Interval]) -> Figure:
    return Figure(
        kind="interval",
        x=tuple(found),
        y=tuple(g.value for g in found.values()),
        low=tuple(g.low for g in found.values()),
        high=tuple(g.high for g in found.values()),
        title="What starts the chain: share of the outlier that is gone",
        x_title="what was taken away",
        y_title="share of the outlier gone",
    )


CLAIM = Claim(
    id="3.2a",
    section="3.2",
    source="The review, section 3.2; against An et al. 2025 (arXiv 2502.06415) and Yu et al. 2024 (arXiv 2411.07191): the feed-forward layer",
    statement="Large weights in the query and key projections start the chain (and not the feed-forward layer).",
    measured="Share of the outlier that is gone when the large query and key weights are shrunk, and when the feed-forward weights that write it "
    "are zeroed.",
    rule="Supported when the whole 95 % interval over inputs for query and key weights lies above 0.5 and above that of the feed-forward; refuted "
    "when it lies below 0.5: the outlier comes without them; else inconclusive.",
    effect_name="outlier gone without large query and key weights",
    unit="share",
    needs=("effects", "growth"),
    judge=judge,
)
