"""3.1b  Softmax is the root: a head that may take back its weight grows no such outliers, one that only gets a bias still does.

Read on a study of attention variants. With r = (largest / median of the stream) / (the same of softmax), over seeds:

    free    r of every variant in which weight can be taken back (a scale, a sink, no sum of one)     below 1/2
    bias    r of every variant that has a bias and a sum of one                                       above 1/2

All must hold with whole 95 % intervals; the effect is the largest r of the free variants. Biases that were not trained are left out.
"""

from __future__ import annotations

from skerry.claims.claim import Claim, Judged, NotApplicable, Verdict, all_of
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite
from skerry.claims.studies import BIASES, FREE, HALF, Study
from skerry.claims.words import counted, span

QUANTITY = "max_to_median"


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    study = Study(evidence)
    free = study.among(FREE)
    try:
        biases = study.among(BIASES)
    except NotApplicable:
        biases = []
    ratios = {label: study.versus(label, QUANTITY) for label in [*free, *biases]}
    verdicts: list[Verdict] = [opposite(decide(ratios[label], HALF)) for label in free]
    verdicts += [decide(ratios[label], HALF) for label in biases]
    told = "; ".join(f"{label} {span(ratio)}" for label, ratio in ratios.items())
    worst = max((ratios[label] for label in free), key=lambda i: i.value)
    why = f"Largest / median of the stream beside softmax, over {counted(study.num_seeds, 'seed')}: {told}."
    figure = study.figure(QUANTITY, ratios, "Activation outliers beside softmax", "ratio to softmax")
    return Judged(all_of(verdicts), why, worst, figure)


CLAIM = Claim(
    id="3.1b",
    section="3.1",
    source="An et al. 2025 (arXiv 2502.06415); Gu et al. 2025 (arXiv 2410.10781)",
    statement="Softmax is the root: attention whose weights need not sum to one, or can be scaled, grows no such outliers.",
    measured="In a study of trainings: largest / median of the residual stream of each attention variant, beside softmax attention of the same seed.",
    rule="The ratio lies below 1/2 for every variant in which weight can be taken back, and above 1/2 for every variant that only adds a bias, with whole "
    "95 % intervals over seeds. Supported when all hold, refuted when one fails wholly, else inconclusive.",
    effect_name="largest ratio of a variant that is free",
    unit="ratio to softmax",
    needs=("study_arms", "study_quantities"),
    judge=judge,
)
