"""5.2a  OS+ gives the very same function at no cost of inference.

Read from the proof before folding (float64), from the outputs after it (the model's own dtype), and from forwards of both models taken in
turn. Two parts, both must hold:

    equivalent    every error <= its bound (1e-10 in float64)
    no cost       no operation is added, and no parameter either or seconds after / seconds before <= 1.05

It fails where an error is above its bound, an operation is added, or a forward takes more than 1.25 times as long. Without more operations and
parameters the very same code runs on the very same shapes; with more parameters (a bias where there was none) the clock decides, and times
between 1.05 and 1.25 decide nothing: they are within what other programs on the machine do to a clock.
"""

from __future__ import annotations

import math

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict, all_of
from skerry.claims.costs import os_plus
from skerry.claims.evidence import Evidence, Row
from skerry.claims.stages import command_of
from skerry.claims.statistics import mean_over
from skerry.claims.words import counted, number, span

SAME_TIME, SLOWER = 1.05, 1.25


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    every = [r for r in evidence.rows("equivalence") if r["error"] is not None]
    name = os_plus(r["method"] for r in every)
    if name is None:
        raise NotApplicable(
            f"the equivalence of OS+ was not measured; `{command_of('equivalence')}` measures it"
        )
    checks = [r for r in every if r["method"] == name]
    equal: Verdict = (
        "supported" if all(r["bound"] is not None and r["error"] <= r["bound"] for r in checks) else "refuted"
    )
    told = "; ".join(
        f"{r['check']} {number(r['error'])} (bound {number(r['bound'])}, {r['dtype']})" for r in checks
    )
    why = f"{name}: relative error of the outputs: {told}."
    times = [r for r in evidence.rows("overhead") if r["method"] == name] if evidence.has("overhead") else []
    if not times:
        return Judged(
            all_of([equal, "inconclusive"]), f"{why} The time of a forward was not measured.", None, None
        )
    ratios = [
        r["seconds_after"] / r["seconds_before"] for r in times if r["seconds_before"] and r["seconds_after"]
    ]
    effect = mean_over(ratios)
    added = sum(r["operations_added"] or 0 for r in times)
    more = max((r["parameters_after"] or 0) - (r["parameters_before"] or 0) for r in times)
    why += (
        f" {counted(added, 'operation')} added, {counted(more, 'parameter')} more; a forward takes {_times(effect)} times as long."
        if ratios
        else f" {counted(added, 'operation')} added; the time of a forward was not measured."
    )
    return Judged(
        all_of([equal, _cost(added, more, effect)]), why, effect if ratios else None, _figure(checks)
    )


def _times(effect: Interval) -> str:
    return span(effect) if math.isfinite(effect.low) else number(effect.value)


def _cost(added: int, more: int, ratio: Interval) -> Verdict:
    if added or ratio.value > SLOWER:
        return "refuted"
    return "supported" if more <= 0 or ratio.value <= SAME_TIME else "inconclusive"


def _figure(checks: list[Row]) -> Figure:
    return Figure(
        kind="bar",
        x=tuple(f"{r['check']}, {r['dtype']}" for r in checks),
        y=tuple(r["error"] / r["bound"] if r["bound"] else None for r in checks),
        title="Error of the outputs as a share of its bound",
        x_title="check",
        y_title="error / bound",
    )


CLAIM = Claim(
    id="5.2a",
    section="5.2",
    source="Wei et al. 2023, OS+ (arXiv 2304.09145), section 4.1",
    statement="OS+ gives a float model that is functionally identical to the original, with no overhead at inference.",
    measured="Relative error of the outputs, in float64 before folding and in the model's dtype after it, against its bound; operations that a "
    "forward has more; seconds of a forward after over before, taken in turn, best of several.",
    rule="Supported when every error is within its bound, no operation is added, and no parameter either or the ratio of seconds is at most 1.05; refuted when an error is "
    "above its bound, an operation is added, or the ratio is above 1.25; else inconclusive.",
    effect_name="seconds after / before",
    unit="times",
    needs=("equivalence",),
    judge=judge,
)
