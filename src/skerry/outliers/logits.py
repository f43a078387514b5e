"""Heads with extreme logits: their range is far beyond that of the model's other heads, and the softmax has nothing left to decide.

    range_h = largest - smallest visible logit        score = robust z of log range_h among all heads of the model

Ours: range >= 3 x the median head's, score >= 2, and range >= 30: the smallest weight is then 1e-13 of
the largest. There is no
count per input in the tables, so recurrence is not tested; a range that one input made shows as a small standard deviation.
Limit: heads that are all alike have score 0, whatever their range.
"""

from __future__ import annotations

import numpy as np

from skerry.outliers.finding import Finding
from skerry.outliers.frames import Frames
from skerry.outliers.presets import listed
from skerry.outliers.robust import Standing

RATIO, SCORE, RANGE = 3.0, 2.0, 30.0


def extreme_logits(frames: Frames, chosen: str) -> list[Finding]:
    """Findings of type `extreme logits`.

    Args:
        frames: The tables.
        chosen: Preset whose findings are listed.
    """
    f = frames("heads", ())
    if not len(f) or not listed(("skerry",), chosen):
        return []
    extent = f["logit_max"] - f["logit_min"]
    extent = np.where(np.isfinite(extent), extent, np.nan)
    standing = Standing(f, extent)
    found = np.flatnonzero((standing.ratio >= RATIO) & (standing.score >= SCORE) & (extent >= RANGE))
    out = []
    for r in found.tolist():
        low, high = float(f["logit_min"][r]), float(f["logit_max"][r])
        out.append(
            Finding(
                kind="attention",
                type="extreme logits",
                site="attn.logits",
                layer=int(f["layer"][r]),
                head=int(f["head"][r]),
                value=high if high >= -low else low,
                ratio=float(standing.ratio[r]),
                score=float(standing.score[r]),
                range=(low, high),
                centre=(low + high) / 2,
                presets=("skerry",),
            )
        )
    return out
