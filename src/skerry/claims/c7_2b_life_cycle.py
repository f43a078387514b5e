"""7.2b  The life cycle in pre-training: outliers are absent at first, born early, and stay.

The review calls this an open question; here it is asked of a training, or of a series of published checkpoints. Of every kind (activation, attention,
weight; the measures of `birth_onsets`) and every training:

    born      an onset was found: the level passed half of the way to its end and held
    early     onset / last step measured                                                  bar 1/2
    kept      level at the end / its peak                                                 bar 1/2

Supported needs every kind of every training born, and the means over kinds and trainings below and above their bars with whole intervals.
Which kind comes first is told with it. A single training has three units, one per kind: its interval says nothing about other seeds.
"""

from __future__ import annotations

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict, all_of
from skerry.claims.evidence import Evidence, Row
from skerry.claims.statistics import decide, mean_over, opposite
from skerry.claims.words import counted, number, span

EARLY, KEPT = 0.5, 0.5


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    onsets = evidence.rows("birth_onsets")
    last = {s: _last(evidence.rows("births"), s) for s in {r["series"] for r in onsets}}
    if not any(last.values()):
        raise NotApplicable("only the initial model was measured; a life cycle needs later steps")
    born = [r for r in onsets if r["onset"] is not None and last[r["series"]]]
    unborn = [r for r in onsets if r["onset"] is None]
    early = mean_over([r["onset"] / last[r["series"]] for r in born])
    kept = mean_over([r["final"] / r["peak"] for r in born if r["peak"]])
    verdicts: list[Verdict] = [
        "supported" if not unborn else "refuted" if not born else "inconclusive",
        opposite(decide(early, EARLY)),
        decide(kept, KEPT),
    ]
    kinds = {
        k: [r["onset"] for r in born if r["kind"] == k] for k in dict.fromkeys(r["kind"] for r in onsets)
    }
    told = ", ".join(f"{kind} {number(sum(steps) / len(steps))}" for kind, steps in kinds.items() if steps)
    why = (
        f"{counted(len(last), 'training')}: {len(born)} of {counted(len(onsets), 'kind of outlier', 'kinds of outlier')} born; onset at {span(early)} of the "
        f"steps measured (steps: {told or 'none'}); at the end {span(kept)} of the peak is left."
    )
    if unborn:
        why += f" Not born: {', '.join(sorted({r['kind'] for r in unborn}))}."
    return Judged(all_of(verdicts), why, early, _figure(evidence))


def _last(births: list[Row], series: str) -> int:
    return max((r["step"] for r in births if r["series"] == series), default=0)


def _figure(evidence: Evidence) -> Figure:
    levels: dict[tuple[str, int], float] = {}
    for row in evidence.rows("births"):
        if row["kind"] == "activation" and row["site"] == "resid.out" and row["max_to_median"] is not None:
            key = row["series"], row["step"]
            levels[key] = max(levels.get(key, 0.0), row["max_to_median"])
    points = sorted(levels)
    return Figure(
        kind="line",
        x=tuple(float(step) for _, step in points),
        y=tuple(levels[p] for p in points),
        series=tuple(series for series, _ in points),
        title="Activation outliers over the training",
        x_title="optimizer step",
        y_title="largest / median of the residual stream",
    )


CLAIM = Claim(
    id="7.2b",
    section="7.2",
    source="the review, section 7.2 (open question); Gu et al. 2025 (arXiv 2410.10781); Guo et al. 2024 (arXiv 2410.13835)",
    statement="Outliers have a life cycle in pre-training: they are absent at first, born early, and stay.",
    measured="Per training and kind (activation, attention, weight): the step at which half of the final level is passed and held, and the level at the "
    "end beside its peak.",
    rule="Three parts: every kind of every training is born; onset / last step lies below 0.5 and final level / peak above 0.5, each with its whole "
    "95 % interval over kinds and trainings. Supported when all hold, refuted when one fails wholly, else inconclusive.",
    effect_name="onset / last step",
    unit="share of the training",
    needs=("births", "birth_onsets"),
    judge=judge,
)
