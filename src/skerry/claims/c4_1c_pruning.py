"""4.1c  Outlier weights make one pruning threshold impossible: a threshold that compresses removes them.

Read for pruning by magnitude with one threshold over the whole model, at half of the weights, the least that is called compression here.
Outlier weights are those above 6 standard deviations of their matrix. Two parts, both must hold:

    removed   outlier weights that go / outlier weights, over matrices                        bar 1/20
    damage    change of the damage                                                            bar 0.1

A threshold on |w| removes the smallest weights first, so outlier weights can only go where a matrix is small as a whole beside the others. What
else outliers do to thresholds (Wanda and SparseGPT, whose scores read the inputs) is told with it: the share of the other weights whose
fate the outlier channels decide.
"""

from __future__ import annotations

import math

import numpy as np

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, all_of
from skerry.claims.costs import SEVERE, UNITS, changed, damage_rows
from skerry.claims.evidence import Evidence, Row
from skerry.claims.statistics import decide, resampled
from skerry.claims.words import counted, percent, percent_span, span

METHOD, SPARSITY = "magnitude-global", 0.5
SHOWN = (METHOD, "wanda", "random")
"""Methods in the figure: the one that is judged, one that reads the inputs, and the control."""
BAR = 0.05


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    rows = [r for r in evidence.rows("pruning_conflict") if _near(r)]
    parts = [
        r
        for r in rows
        if r["method"] == METHOD and r["num_outlier_weights"] and r["share_outliers_kept"] is not None
    ]
    if not any(r["method"] == METHOD for r in rows):
        raise NotApplicable(
            f"pruning by {METHOD} at {SPARSITY:g} was not measured; `skerry impact` does, unless told to prune otherwise"
        )
    if not parts:
        raise NotApplicable("no matrix has a weight above 6 standard deviations")
    removed = _removed(parts)
    costs = [r for r in damage_rows(evidence, "pruning") if _near(r)]
    global_ = next((r for r in costs if r["method"] == METHOD), None)
    if global_ is None:
        raise NotApplicable(f"the damage of {METHOD} at {SPARSITY:g} was not measured")
    damage, outcome = changed(global_), global_["outcome"]
    num = sum(int(r["num_outlier_weights"]) for r in parts)
    why = (
        f"One threshold of |w| that removes half of the weights removes {percent_span(removed)} of {counted(num, 'outlier weight')} in "
        f"{counted(len(parts), 'matrix', 'matrices')}, and costs {span(damage)} ({outcome}, {UNITS[outcome]})."
    )
    told = [
        f"{name} {percent(share)}"
        for name in dict.fromkeys(r["method"] for r in rows)
        if name != METHOD and (share := _band(rows, name)) is not None
    ]
    if told:
        why += f" Outlier channels decide the fate of other weights: {', '.join(told)}."
    verdict = all_of([decide(removed, BAR), decide(damage, SEVERE)])
    return Judged(verdict, why, removed, _figure(evidence, outcome))


def _near(r: Row) -> bool:
    return r["sparsity"] is not None and math.isclose(r["sparsity"], SPARSITY, abs_tol=1e-6)


def _removed(parts: list[Row]) -> Interval:
    table = np.array(
        [
            (r["num_outlier_weights"], r["num_outlier_weights"] * (1 - r["share_outliers_kept"]))
            for r in parts
        ],
        np.float64,
    )

    def share(groups: object) -> float:
        both = np.asarray(groups[0]).sum(0)  # type: ignore[index]
        return float(both[1] / both[0])

    return resampled([table], share)


def _band(rows: list[Row], method: str) -> float | None:
    """Mean over matrices, by their weights, of |share in the band|."""
    found = [
        (r["num_weights"], abs(r["share_in_band"]))
        for r in rows
        if r["method"] == method and r["share_in_band"] is not None
    ]
    total = sum(n for n, _ in found)
    return sum(n * s for n, s in found) / total if total else None


def _figure(evidence: Evidence, outcome: str) -> Figure:
    rows = [r for r in damage_rows(evidence, "pruning") if r["sparsity"] is not None and r["method"] in SHOWN]
    return Figure(
        kind="line",
        x=tuple(r["sparsity"] for r in rows),
        y=tuple(r["change"] for r in rows),
        low=tuple(r["ci_low"] for r in rows),
        high=tuple(r["ci_high"] for r in rows),
        series=tuple(r["method"] for r in rows),
        title="Damage of pruning",
        x_title="share of the weights that are gone",
        y_title=f"{outcome}, {UNITS[outcome]}",
    )


CLAIM = Claim(
    id="4.1c",
    section="4.1",
    source="Sun et al. 2023, Wanda (arXiv 2306.11695); Yin et al. 2024, OWL (arXiv 2310.05175)",
    statement="Outlier weights make a global pruning threshold hard to set: one that compresses removes them and damages the model.",
    measured="Pruning by magnitude with one threshold over the whole model, at half of the weights: share of the weights above 6 standard deviations "
    "of their matrix that is removed; damage (loss; of an encoder distance).",
    rule="Two parts: the share removed lies above 0.05, with its whole 95 % interval over matrices, and the damage lies above 0.1, with its whole "
    "interval over inputs. Supported when both hold, refuted when one lies wholly below, else inconclusive.",
    effect_name="outlier weights removed",
    unit="share",
    needs=("pruning", "pruning_conflict"),
    judge=judge,
)
