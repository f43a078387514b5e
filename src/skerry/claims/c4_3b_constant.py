"""4.3b  Setting outliers to their mean does not hurt: a constant suffices.

    share = damage of setting the outliers to their mean / damage of setting them to zero        bar 1/4

It is no question where removing them does no damage, or not more than random values: then there is nothing that a constant would have to do.
"""

from __future__ import annotations

import numpy as np

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable
from skerry.claims.effects import (
    CONSTANT,
    EQUALLY_MANY,
    REMOVED,
    UNITS,
    arm,
    change,
    damage_of,
    group,
)
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite
from skerry.claims.words import number, percent_span, span

BAR = 0.25


def judge(evidence: Evidence, *, table: str = "effects") -> Judged:
    """See the module.

    Args:
        evidence: The run.
        table: Where the removal was measured: `effects`, or a table with its columns.

    Raises:
        NotApplicable: Nothing was removed, or removing does no damage that a constant could prevent.
    """
    rows = group(evidence, "removal", table=table)
    damage = damage_of(rows)
    removed, constant = (arm(rows, name, damage, control=False) for name in (REMOVED, CONSTANT))
    if not removed or not constant:
        raise NotApplicable("the outliers were not both removed and set to their mean")
    zero, mean = change(removed[0]), change(constant[0])
    control = [r["change"] for r in arm(rows, EQUALLY_MANY, damage, control=True)]
    random = float(np.mean(control)) if control else 0.0
    if not zero.low > max(0.0, random):
        raise NotApplicable(
            f"removing the outliers costs {span(zero)} ({damage}) and equally many random values {number(random)}: there is no damage for a constant "
            "to prevent"
        )
    effect = Interval(*(v / zero.value for v in mean))
    why = (
        f"Set to their mean the outliers cost {span(mean)}, set to zero {span(zero)} ({damage}, {UNITS[damage]}): {percent_span(effect)} of the damage "
        "is left."
    )
    figure = Figure(
        kind="interval",
        x=(REMOVED, CONSTANT),
        y=(zero.value, mean.value),
        low=(zero.low, mean.low),
        high=(zero.high, mean.high),
        title="Damage of outliers set to zero and to their mean",
        x_title="what was done",
        y_title=f"{damage}, {UNITS[damage]}",
    )
    return Judged(opposite(decide(effect, BAR)), why, effect, figure)


CLAIM = Claim(
    id="4.3b",
    section="4.3",
    source="Sun et al. 2024 (arXiv 2402.17762); Owen et al. 2025 (arXiv 2503.22329)",
    statement="Setting outliers to their mean does not hurt: a constant suffices.",
    measured="Damage of setting the outliers to their mean over the damage of setting them to zero.",
    rule="Supported when the whole 95 % interval over inputs lies below a quarter, refuted when it lies above, else inconclusive; not applicable "
    "where setting them to zero costs no more than random values.",
    effect_name="damage with the mean / with zero",
    unit="share",
    needs=("effects",),
    judge=judge,
)
