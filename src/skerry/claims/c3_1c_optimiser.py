"""3.1c  The optimiser's part: without Adam the peaks of the stream go, and the sinks stay.

Read on a study that trained softmax attention with other optimisers, labelled by their names. With r as in 3.1b, and the share of the strongest
head's attention on the first token:

    peaks   r                                      below 1/2
    sinks   share / share with AdamW               above 1/2

Both must hold for every other optimiser, with whole 95 % intervals over seeds; the effect is the largest r.
"""

from __future__ import annotations

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Judged, Verdict, all_of
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite
from skerry.claims.studies import BASELINE, HALF, OPTIMISERS, Study
from skerry.claims.words import counted, span


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    study = Study(evidence)
    labels = study.among(OPTIMISERS)
    share = study.value(BASELINE, "first_share").value
    verdicts: list[Verdict] = []
    told = []
    peaks = {label: study.versus(label, "max_to_median") for label in labels}
    for label, ratio in peaks.items():
        change = study.versus(label, "first_share")
        kept = Interval(*(1 + x / share for x in change))
        verdicts += [opposite(decide(ratio, HALF)), decide(kept, HALF)]
        told.append(f"{label} {span(ratio)} of the peak and {span(kept)} of the sink's share")
    why = f"Beside AdamW, over {counted(study.num_seeds, 'seed')}: {'; '.join(told)}."
    worst = max(peaks.values(), key=lambda i: i.value)
    figure = study.figure("max_to_median", labels, "Activation outliers beside AdamW", "ratio to AdamW")
    return Judged(all_of(verdicts), why, worst, figure)


CLAIM = Claim(
    id="3.1c",
    section="3.1",
    source="Guo et al. 2024 (arXiv 2410.13835); He et al. 2024 (arXiv 2405.19279); Park et al. 2025 (arXiv 2506.19697); Kaul et al. 2024",
    statement="The peaks of the residual stream are the optimiser's: without Adam they go, while the sinks stay.",
    measured="In a study of trainings: largest / median of the stream, and the strongest head's share on the first token, with other optimisers beside AdamW.",
    rule="For every other optimiser the ratio of the peaks lies below 1/2 and the ratio of the shares above 1/2, with whole 95 % intervals over seeds. "
    "Supported when all hold, refuted when one fails wholly, else inconclusive.",
    effect_name="largest ratio of the peaks",
    unit="ratio to AdamW",
    needs=("study_arms", "study_quantities"),
    judge=judge,
)
