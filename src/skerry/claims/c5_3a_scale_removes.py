"""5.3a  An explicit context-aware scale removes the outliers.

Read on a study with the variant `scaled`, beside softmax of the same seeds. Two parts, both must hold with whole 95 % intervals over seeds:

    peaks   (largest / median of the stream) / (softmax's)                      below 1/2
    sink    share of the strongest head on the first token, difference          below 0

Half is little to call removal; a bar of its own absence would compare with a Gaussian, and no small decoder comes near that.
"""

from __future__ import annotations

from skerry.claims.claim import Claim, Judged, all_of
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite
from skerry.claims.studies import BASELINE, HALF, Study
from skerry.claims.words import counted, span

VARIANT = ("scaled",)


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    study = Study(evidence)
    labels = study.among(VARIANT)
    label = labels[0]
    peaks, sink = study.versus(label, "max_to_median"), study.versus(label, "first_share")
    verdict = all_of([opposite(decide(peaks, HALF)), opposite(decide(sink, 0.0))])
    why = (
        f"Over {counted(study.num_seeds, 'seed')}: largest / median {span(study.value(label, 'max_to_median'))} beside {span(study.value(BASELINE, 'max_to_median'))}, "
        f"ratio {span(peaks)}; share of the strongest head on the first token {span(sink)} beside softmax."
    )
    figure = study.figure(
        "max_to_median", labels, "Activation outliers with an explicit scale", "ratio to softmax"
    )
    return Judged(verdict, why, peaks, figure)


CLAIM = Claim(
    id="5.3a",
    section="5.3",
    source="the review, section 5.3; An et al. 2025 (arXiv 2502.06415)",
    statement="An explicit context-aware scale in attention removes the outliers.",
    measured="In a study of trainings: largest / median of the residual stream, and the strongest head's share on the first token, of `scaled` beside softmax of "
    "the same seeds.",
    rule="The ratio of the peaks lies below 1/2 and the difference of the shares below 0, with whole 95 % intervals over seeds. Supported when both hold, refuted when "
    "one is wholly on the other side, else inconclusive.",
    effect_name="ratio of the peaks",
    unit="ratio to softmax",
    needs=("study_arms", "study_quantities"),
    judge=judge,
)
