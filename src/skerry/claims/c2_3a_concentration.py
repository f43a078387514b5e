"""2.3a  A handful of channels owns the dynamic range.

For every activation tensor in which the scan found outliers: the share of its range (largest - smallest value) that is gone without the 1 %
of channels (at least one) of largest |x|. Limit: 0 when all channels reach equally far, towards 1 when the rest lies at zero.
"""

from __future__ import annotations

import numpy as np

from skerry.claims.claim import Claim, Figure, Judged
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, mean_over
from skerry.claims.words import counted, percent, percent_span
from skerry.outliers.finding import SiteProfile

BAR = 0.5


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    tensors = evidence.outlier_tensors()
    effect = mean_over([s.range_share_top1pct for s in tensors])
    rest = [s.range_share_top1pct for s in evidence.profiles if s not in tensors]
    other = (
        f"; in the {counted(len(rest), 'tensor')} without any {percent(float(np.mean(rest)))}" if rest else ""
    )
    holding = float(np.median([s.channels_for_99 / s.num_channels for s in tensors]))
    why = (
        f"Without the widest 1 % of channels the range shrinks by {percent_span(effect)} (mean over {counted(len(tensors), 'tensor')} with outliers)"
        f"{other}. 99 % of the squared extremes are in {percent(holding)} of the channels (median)."
    )
    return Judged(decide(effect, BAR), why, effect, _figure(tensors))


def _figure(tensors: list[SiteProfile]) -> Figure:
    parts = {s.site: [t.range_share_top1pct for t in tensors if t.site == s.site] for s in tensors}
    names = sorted(parts, key=lambda p: -float(np.mean(parts[p])))
    return Figure(
        kind="bar",
        x=tuple(names),
        y=tuple(float(np.mean(parts[p])) for p in names),
        low=tuple(min(parts[p]) for p in names),
        high=tuple(max(parts[p]) for p in names),
        title="Share of the range that the widest 1 % of channels own (line: smallest to largest block)",
        x_title="tensor with outliers, mean over blocks",
        y_title="share of the range",
    )


CLAIM = Claim(
    id="2.3a",
    section="2.3",
    source="Wei et al. 2023, OS+ (arXiv 2304.09145); Dettmers et al. 2022 (arXiv 2208.07339)",
    statement="Outliers are concentrated: a handful of channels owns the dynamic range.",
    measured="Share of a tensor's range that is gone without its widest 1 % of channels; mean over the tensors in which outliers were found.",
    rule="Supported when the whole 95 % interval over tensors lies above 0.5 (they own most of the range), refuted when it lies below, else "
    "inconclusive.",
    effect_name="share of the range in 1 % of channels",
    unit="share",
    needs=("sites", "channels"),
    judge=judge,
)
