"""4.3a  Removing outliers hurts much more than removing equally many random values, or equally much energy.

    ratio = damage of zeroing the outliers / damage of the control that hurts more

Controls: random values, as many as there are outliers; random values with as much energy together. The damage of a control is the mean over
its random draws. Damage is the loss (nats per token), without a head the distance of the last hidden states.

    supported      damage of the outliers > 2 x every draw of both controls, with its whole interval, and above 0
    refuted        damage of the outliers < 2 x the mean of the control that hurts more, with its whole interval
    inconclusive   else

Puccetti et al. ask for five times one random dimension; twice is the least that "much more" can mean here, where the controls have the
same number or energy.
"""

from __future__ import annotations

import math

import numpy as np

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict
from skerry.claims.effects import (
    EQUAL_ENERGY,
    EQUALLY_MANY,
    REMOVED,
    UNITS,
    arm,
    change,
    damage_of,
    group,
)
from skerry.claims.evidence import Evidence
from skerry.claims.words import counted, number, span

MUCH = 2.0
NOTHING = 1e-12
"""A control that does no damage at all gives no ratio."""


def judge(evidence: Evidence, *, table: str = "effects") -> Judged:
    """See the module.

    Args:
        evidence: The run.
        table: Where the removal was measured: `effects`, or a table with its columns.

    Raises:
        NotApplicable: Nothing was removed, or no control was drawn.
    """
    rows = group(evidence, "removal", table=table)
    damage = damage_of(rows)
    removed = arm(rows, REMOVED, damage, control=False)
    draws = {
        name: [r["change"] for r in arm(rows, name, damage, control=True)]
        for name in (EQUALLY_MANY, EQUAL_ENERGY)
    }
    draws = {name: found for name, found in draws.items() if found}
    if not removed or not draws:
        raise NotApplicable("the outliers were not removed, or no control was drawn")
    ours = change(removed[0])
    means = {name: float(np.mean(found)) for name, found in draws.items()}
    hardest = max(means.values())
    verdict: Verdict = "inconclusive"
    if ours.low > max(0.0, MUCH * max(max(found) for found in draws.values())):
        verdict = "supported"
    elif ours.high < max(NOTHING, MUCH * hardest):
        verdict = "refuted"
    told = ", ".join(
        f"{name} {number(means[name])} (mean of {counted(len(draws[name]), 'draw')})" for name in means
    )
    ratio = _ratio(ours, hardest)
    why = f"Zeroing the outliers costs {span(ours)} ({damage}, {UNITS[damage]}); {told}."
    why += (
        f" That is {span(ratio)} times the control that hurts more."
        if math.isfinite(ratio.value)
        else " The controls do no damage, so there is no ratio."
    )
    return Judged(
        verdict, why, ratio if math.isfinite(ratio.value) else None, _figure(ours, draws, means, damage)
    )


def _ratio(ours: Interval, hardest: float) -> Interval:
    if not hardest > NOTHING:
        return Interval(math.nan, math.nan, math.nan)
    return Interval(*(v / hardest for v in ours))


def _figure(ours: Interval, draws: dict[str, list[float]], means: dict[str, float], damage: str) -> Figure:
    return Figure(
        kind="interval",
        x=(REMOVED, *means),
        y=(ours.value, *means.values()),
        low=(ours.low, *(min(found) for found in draws.values())),
        high=(ours.high, *(max(found) for found in draws.values())),
        title="Damage of removing outliers and of the controls (line: interval; of controls, all draws)",
        x_title="what was removed",
        y_title=f"{damage}, {UNITS[damage]}",
    )


CLAIM = Claim(
    id="4.3a",
    section="4.3",
    source="Sun et al. 2024 (arXiv 2402.17762); Puccetti et al. 2022 (arXiv 2205.11380); Owen et al. 2025 (arXiv 2503.22329)",
    statement="Removing outliers hurts the model much more than removing equally many random values, or equally much energy.",
    measured="Damage (loss; without a head the distance of the last hidden states) of setting the outliers to zero, over that of the worse of two "
    "controls: as many random values, and random values of as much energy.",
    rule="Supported when the whole 95 % interval over inputs lies above twice every draw of both controls and above 0; refuted when it lies below "
    "twice the mean of the worse control; else inconclusive.",
    effect_name="damage / damage of the worse control",
    unit="times",
    needs=("effects",),
    judge=judge,
)
