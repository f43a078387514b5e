"""4.2a  Models without outliers converge faster.

The published curve shows the first steps; this reads the whole run. A variant counts as without outliers when its largest / median of the stream is at
most half of softmax's (the mean over seeds). Three parts, for every such variant beside softmax of the same seeds and windows:

    sooner    steps until softmax's final loss / steps of softmax                 below 1
    whole     held-out loss, mean over the whole run, difference                  below 0
    end       held-out loss at the end, difference                                not above 0

`sooner` fails where no seed gets there. Supported needs all; it is refuted when a part is wholly on the other side; the effect is that of the
explicit scale, which the claim was made for, else of the first variant.
"""

from __future__ import annotations

import math

from skerry.claims.claim import Claim, Judged, NotApplicable, Verdict, all_of
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite
from skerry.claims.studies import BASELINE, HALF, Study
from skerry.claims.words import counted, span


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    study = Study(evidence)
    labels = [
        label
        for label in study.labels
        if label != BASELINE and study.versus(label, "max_to_median").value <= HALF
    ]
    if not labels:
        raise NotApplicable(
            "no variant of the study is without outliers: none has half of softmax's peak or less"
        )
    verdicts: list[Verdict] = []
    told = []
    for label in labels:
        steps, whole, end = (study.versus(label, q) for q in ("steps_to_baseline", "loss_over_run", "loss"))
        never = not math.isfinite(steps.value)
        verdicts.append("refuted" if never else opposite(decide(steps, 1.0)))
        verdicts.append(opposite(decide(whole, 0.0)))
        verdicts.append(
            "refuted" if end.low > 0 else "supported" if end.high <= 0 or end.value <= 0 else "inconclusive"
        )
        when = (
            "never reaches softmax's final loss" if never else f"reaches it after {span(steps)} of the steps"
        )
        told.append(f"{label} {when}, over the run {span(whole)}, at the end {span(end)} nats")
    first = next((label for label in labels if label.split(":")[0] == "scaled"), labels[0])
    why = f"Beside softmax, over {counted(study.num_seeds, 'seed')}: {'; '.join(told)}."
    figure = study.figure(
        "loss_over_run", labels, "Held-out loss over the whole run beside softmax", "nats per token"
    )
    return Judged(all_of(verdicts), why, study.versus(first, "loss_over_run"), figure)


CLAIM = Claim(
    id="4.2a",
    section="4.2",
    source="the review, section 4.2; An et al. 2025 (arXiv 2502.06415)",
    statement="Models without outliers converge faster.",
    measured="In a study of trainings, for every variant with at most half of softmax's peak: steps until softmax's final held-out loss, held-out loss over the "
    "whole run and at its end, beside softmax of the same seeds and windows.",
    rule="Fewer steps (ratio below 1), a lower loss over the whole run (below 0), with whole 95 % intervals, and no higher loss at the end. Supported when "
    "all hold for every such variant, refuted when one is wholly on the other side or the final loss is never reached, else inconclusive.",
    effect_name="held-out loss over the whole run, difference",
    unit="nats per token",
    needs=("study_arms", "study_quantities"),
    judge=judge,
)
