"""3.1a  Sharp attention needs extreme logits.

Over all heads: Spearman's rank correlation between how far the largest logit lies above the head's mean logit and the entropy of the head's
attention relative to uniform attention (1 is uniform, 0 one key). If sharpness needs extreme logits the correlation is strongly negative. A
single row's softmax ties its own logits to its own entropy; extremes over a whole text and the mean entropy of a head need not go together.
"""

from __future__ import annotations

import numpy as np

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite, rank_correlation
from skerry.claims.words import counted, number, span

BAR, MIN_HEADS = -0.3, 8


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    evidence.heads()
    rows = [
        (h["logit_max"] - h["logit_mean"], h["entropy"] / h["entropy_uniform"], h["logit_std"])
        for h in evidence.rows("heads")
        if h["entropy_uniform"]
        and all(h[name] is not None for name in ("logit_max", "logit_mean", "entropy", "logit_std"))
    ]
    table = np.array([r for r in rows if np.isfinite(r).all()], np.float64).reshape(-1, 3)
    if not len(table):
        raise NotApplicable("no head has both logits and an entropy")
    peak, entropy, spread = table.T
    effect = rank_correlation(peak, entropy)
    other = rank_correlation(spread, entropy)
    quarter = max(1, len(table) // 4)
    sharp, rest = np.argsort(entropy)[:quarter], np.argsort(entropy)[quarter:]
    why = f"Rank correlation over {counted(len(table), 'head')}: {span(effect)} (with the standard deviation of the logits: {number(other.value)}). "
    if len(rest):
        why += (
            f"In the sharpest quarter the largest logit lies {number(float(np.median(peak[sharp])))} above the mean, "
            f"in the others {number(float(np.median(peak[rest])))} (medians)."
        )
    verdict = opposite(decide(effect, BAR)) if len(table) >= MIN_HEADS else "inconclusive"
    figure = Figure(
        kind="scatter",
        x=tuple(peak.tolist()),
        y=tuple(entropy.tolist()),
        title="Extreme logits and sharp attention, every head",
        x_title="largest logit - mean logit",
        y_title="entropy / entropy of uniform attention",
    )
    return Judged(verdict, why, effect, figure)


CLAIM = Claim(
    id="3.1a",
    section="3.1",
    source="Bondarenko et al. 2023 (arXiv 2306.12929); An et al. 2025 (arXiv 2502.06415)",
    statement="Sharp attention needs extreme logits: the sharper a head, the further its largest logit lies from the others.",
    measured="Spearman's correlation over heads between (largest logit - mean logit) and the entropy of attention relative to uniform.",
    rule="Supported when the whole 95 % interval over heads lies below -0.3, refuted when it lies above, else inconclusive; fewer than 8 heads "
    "decide nothing.",
    effect_name="rank correlation of extreme logits and entropy",
    unit="correlation",
    needs=("heads",),
    judge=judge,
)
