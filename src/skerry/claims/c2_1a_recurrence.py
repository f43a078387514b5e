"""2.1a  Outliers recur across inputs: an outlier of one input is there again in another.

In input s channel j is an outlier when max_t |x_tj| >= 5 x the median of that over the channels. With h_j the number of the n inputs in
which it is, and d channels,

    again  = sum_j h_j (h_j - 1) / ((n - 1) sum_j h_j)     a channel that is an outlier in one input is one in another
    chance = sum_j h_j / (n d)                             any channel is
    kappa  = (again - chance) / (1 - chance)

No channel is chosen for its recurrence, so nothing is counted twice. Limit: the same channels in every input give 1, other channels at
random in every input give 0. (Cohen 1960 corrects agreement for chance in this way.)
"""

from __future__ import annotations

import math

import numpy as np

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, mean_over
from skerry.claims.words import counted, percent, percent_span

RATIO = "high_5"
PER_INPUT = 0.5
"""Tensors in which an input holds fewer outliers than this on average have none to speak of."""
BAR = 0.2


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    f = evidence.frame("channels")
    num = np.maximum(f.max(f["num_samples"].astype(float)), 0)
    events, pairs = f.sum(f[RATIO]), f.sum(f[RATIO] * (f[RATIO] - 1.0))
    use = (num >= 2) & (events >= PER_INPUT * num) & (events > 0)
    if not use.any():
        if (num < 2).all():
            raise NotApplicable("one input was read: recurrence needs at least two")
        raise NotApplicable("no tensor has channels of 5 x the median in its inputs")
    again = pairs[use] / ((num[use] - 1) * events[use])
    chance = events[use] / (num[use] * f.count()[use])
    some = chance < 1
    kappa = mean_over((again[some] - chance[some]) / (1 - chance[some]))
    why = (
        f"An outlier channel of one input is one again in {percent(float(again.mean()))} of the others; by chance "
        f"{percent(float(chance.mean()))} (mean over {counted(int(use.sum()), 'tensor')}). "
        f"Corrected for chance: {percent_span(kappa)}."
    )
    parts = [key[1] for key, chosen in zip(f.keys, use, strict=True) if chosen]
    return Judged(decide(kappa, BAR), why, kappa, _figure(parts, again, chance))


def _figure(parts: list[str], again: np.ndarray, chance: np.ndarray) -> Figure:
    names = sorted(set(parts), key=lambda p: -_mean(again, parts, p))
    return Figure(
        kind="bar",
        x=tuple(p for p in names for _ in range(2)),
        y=tuple(_mean(x, parts, p) for p in names for x in (again, chance)),
        series=("seen again", "by chance") * len(names),
        title="An outlier channel of one input is an outlier in another",
        x_title="tensor, mean over blocks",
        y_title="share of other inputs",
    )


def _mean(x: np.ndarray, parts: list[str], part: str) -> float:
    return math.fsum(v for v, p in zip(x, parts, strict=True) if p == part) / parts.count(part)


CLAIM = Claim(
    id="2.1a",
    section="2.1",
    source="An et al. 2025 (arXiv 2502.06415); Dettmers et al. 2022 (arXiv 2208.07339)",
    statement="Outliers recur across inputs far beyond chance: they are systematic.",
    measured="How often a channel that is an outlier in one input (its largest |x| is 5 x the median channel) is one in another input, "
    "corrected for chance: 0 is chance, 1 is always. Mean over tensors that hold such channels.",
    rule="Supported when the whole 95 % interval over tensors lies above 0.2, refuted when it lies below, else inconclusive.",
    effect_name="recurrence corrected for chance",
    unit="0 chance, 1 always",
    needs=("channels",),
    judge=judge,
)
