"""4.1a  Outliers make quantization fail: they stretch the range, most values share few levels, and the model is damaged.

Read at 8 bits with one range per input tensor, as the review describes it; where that was not measured, with one per token. A range per token
is the gentler one: it can support the statement and not refute it. Three parts, all must hold:

    levels    share of a grid's levels that the central 99 % of the values of a tensor use, mean over inputs of linear maps       bar 1/4
    damage    change of the damage with the whole model quantized to 8 bits                                                       bar 0.1
    cause     1 - (damage with the outlier channels in full precision) / damage, over the inputs that cost something              bar 1/2

A Gaussian tensor of a million values spreads its central 99 % over about half of the levels, so a quarter is half of that. 0.1 nats is a
perplexity 11 % up.
"""

from __future__ import annotations

import math

import numpy as np

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, all_of
from skerry.claims.costs import SEVERE, changed, damage_rows, integer_bits, is_per_tensor, outcome_of
from skerry.claims.evidence import Evidence, Row
from skerry.claims.statistics import NOTHING, decide, mean_over, opposite, resampled
from skerry.claims.words import counted, percent_span, span

FEW_LEVELS, MOST = 0.25, 0.5


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    grid = _coarsest(damage_rows(evidence, "quantization_grid"))
    if not grid:
        raise NotApplicable(
            "no scheme of 8-bit weights and inputs was measured; `skerry impact` measures w8a8-tensor and w8a8"
        )
    worst = max(grid, key=lambda r: r["change"])
    damage = changed(worst)
    inputs = _coarsest(
        [r for r in damage_rows(evidence, "quantization_sites") if not r["site"].startswith("w.")]
    )
    levels = mean_over([r["central_levels"] for r in inputs if r["central_levels"] is not None])
    cause = _caused(inputs)
    parts = [opposite(decide(levels, FEW_LEVELS)), decide(damage, SEVERE), decide(cause, MOST)]
    unit = outcome_of(evidence, "quantization_grid")
    why = (
        f"Under {worst['scheme']} the damage is {span(damage)} ({unit}). The central 99 % of the values use {percent_span(levels)} of the levels "
        f"({counted(len(inputs), 'input tensor')})."
    )
    why += (
        f" With the outlier channels in full precision {percent_span(cause)} of the damage of single inputs is gone."
        if math.isfinite(cause.value)
        else " No single input costs anything by itself, so outlier channels cannot be told to cause it."
    )
    verdict = all_of(parts)
    if verdict == "refuted" and not is_per_tensor(worst["scheme"]):
        verdict = "inconclusive"
        why += " One range per tensor, which is coarser, was not measured."
    return Judged(verdict, why, damage, _figure(evidence, unit))


def _coarsest(rows: list[Row]) -> list[Row]:
    """Those of 8-bit weights and inputs: with one range per input tensor where there are any."""
    eight = [r for r in rows if integer_bits(r["scheme"]) == 8]
    return [r for r in eight if is_per_tensor(r["scheme"])] or eight


def _caused(rows: list[Row]) -> Interval:
    """Share of the damage of single inputs that is gone without the outlier channels, over the inputs whose interval lies above 0."""
    pairs = [
        (r["change"], r["change_without_channels"])
        for r in rows
        if r["ci_low"] is not None and r["ci_low"] > 0 and r["change_without_channels"] is not None
    ]
    if not pairs:
        return NOTHING

    def share(groups: object) -> float:
        a, b = np.asarray(groups[0]).T  # type: ignore[index]
        return float(1 - b.sum() / a.sum())

    return resampled([np.asarray(pairs, np.float64)], share)


def _figure(evidence: Evidence, unit: str) -> Figure:
    rows = [
        r
        for r in damage_rows(evidence, "quantization_grid")
        if r["scheme"] != "original" and r["ci_low"] is not None
    ]
    rows.sort(key=lambda r: r["change"])
    return Figure(
        kind="interval",
        x=tuple(r["scheme"] for r in rows),
        y=tuple(r["change"] for r in rows),
        low=tuple(r["ci_low"] for r in rows),
        high=tuple(r["ci_high"] for r in rows),
        title="Damage of quantizing the whole model",
        x_title="scheme",
        y_title=unit,
    )


CLAIM = Claim(
    id="4.1a",
    section="4.1",
    source="Dettmers et al. 2022 (arXiv 2208.07339); Xiao et al. 2023, SmoothQuant (arXiv 2211.10438)",
    statement="Outliers make quantization fail: they stretch the range, so that most values share few levels, and the model is damaged severely.",
    measured="At 8 bits with one range per input tensor (one per token where that was not measured): damage of the whole model (loss; of an encoder distance); share of the levels that the central "
    "99 % of the values of an input use, mean over inputs; share of the damage of single inputs that is gone with the outlier channels in full precision.",
    rule="Three parts: the levels used lie below a quarter, the damage lies above 0.1, the share that outlier channels cause lies above a half, each "
    "with its whole 95 % interval. Supported when all hold, refuted when one lies wholly on the other side with one range per tensor, else inconclusive.",
    effect_name="damage at 8 bits",
    unit="loss or distance",
    needs=("quantization_grid", "quantization_sites"),
    judge=judge,
)
