"""3.2c  Outliers decline in the last layers by active cancellation.

For every outlier that was followed: what attention and feed-forward of its exit block write against it, over the value that the block
receives (1 cancels it in full), if that block is one of the last (a quarter, rounded up, at least 2); 0 for an outlier that stays to the
end or ends elsewhere. What a norm's gain or bias does is no cancellation. Effect: the mean over outliers. Its interval takes all of them at
the lower and at the upper ends of their intervals over inputs: the outliers of a model are all there are, not a sample.
"""

from __future__ import annotations

import math

import numpy as np

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged
from skerry.claims.evidence import Evidence, Row
from skerry.claims.statistics import decide, last_layers
from skerry.claims.words import counted, percent, percent_span

BAR = 0.5
WRITERS = ("attn.out", "mlp.out")


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    carriers = evidence.rows("carriers")
    growth = [r for r in evidence.rows("growth") if r["event"] == "exit" and r["level"] == "block"]
    first = evidence.num_layers - last_layers(evidence.num_layers)
    found = [_cancelled(c, [r for r in growth if r["carrier"] == c["carrier"]], first) for c in carriers]
    effect = Interval(*(math.fsum(ends) / len(found) for ends in zip(*found, strict=True)))
    late = [c for c in carriers if c["exit_layer"] is not None and c["exit_layer"] >= first]
    stay = sum(c["exit_layer"] is None for c in carriers)
    left = [v for c in carriers if (v := _left(evidence, c)) is not None]
    why = (
        f"Attention and feed-forward write {percent_span(effect)} of the outliers away in the last {evidence.num_layers - first} blocks. "
        f"{len(late)} of {counted(len(carriers), 'outlier')} end there, {stay} {'stays' if stay == 1 else 'stay'} to the end"
    )
    why += (
        f"; what leaves the last block is {percent(float(np.mean(left)))} of the peak (mean)."
        if left
        else "."
    )
    return Judged(decide(effect, BAR), why, effect, _figure(evidence, carriers))


def _cancelled(carrier: Row, parts: list[Row], first: int) -> Interval:
    """Share of the outlier that the writers of its exit block take away, if it ends in the last blocks."""
    full, exit_layer = carrier["cancellation"], carrier["exit_layer"]
    if exit_layer is None or exit_layer < first or full is None:
        return Interval(0.0, 0.0, 0.0)
    written = [r for r in parts if r["part"] in WRITERS]
    value = math.fsum(r["share"] for r in written)
    # Ends of parts are added as if all erred the same way: the widest interval that they allow.
    low = math.fsum(r["share"] if r["low"] is None else r["low"] for r in written)
    high = math.fsum(r["share"] if r["high"] is None else r["high"] for r in written)
    return Interval(*(full * x for x in (value, low, high)))


def _left(evidence: Evidence, carrier: Row) -> float | None:
    """|value| behind the last block / |peak|."""
    rows = [
        r
        for r in evidence.rows("lifecycle")
        if r["carrier"] == carrier["carrier"] and r["site"] == "resid.out" and r["value"] is not None
    ]
    if not rows or not carrier["peak"]:
        return None
    return abs(max(rows, key=lambda r: r["layer"])["value"] / carrier["peak"])


def _figure(evidence: Evidence, carriers: list[Row]) -> Figure | None:
    shown = {c["carrier"]: c for c in sorted(carriers, key=lambda c: -(c["ratio"] or 0.0))[:3]}
    rows = [
        r
        for r in evidence.rows("lifecycle")
        if r["carrier"] in shown and r["site"] == "resid.out" and r["value"] is not None
    ]
    if not rows:
        return None
    return Figure(
        kind="line",
        x=tuple(r["layer"] for r in rows),
        y=tuple(abs(r["value"]) for r in rows),
        series=tuple(f"channel {shown[r['carrier']]['channel']}" for r in rows),
        title="The strongest outliers of the residual stream behind each block",
        x_title="block",
        y_title="|value|, mean over its tokens",
    )


CLAIM = Claim(
    id="3.2c",
    section="3.2",
    source="An et al. 2025 (arXiv 2502.06415)",
    statement="Outliers decline in the last layers by active cancellation: a block writes the opposite sign.",
    measured="Share of each outlier of the residual stream that attention and feed-forward of its exit block write away, if that block is one "
    "of the last quarter (at least 2 blocks), else 0; mean over outliers.",
    rule="Supported when the whole interval (95 %, over inputs) lies above 0.5, refuted when it lies below, else inconclusive.",
    effect_name="share of the outliers written away in the last blocks",
    unit="share",
    needs=("carriers", "lifecycle", "growth"),
    judge=judge,
)
