"""5.3b  ... and that makes compression robust.

Read on a study with the variant `scaled`, beside softmax of the same seeds and windows. What compression adds to the held-out loss, of

    W8A8 with static ranges per tensor        the setting that outliers hurt most
    50 % of the weights pruned by magnitude

must be less than softmax's (difference below 0, whole 95 % interval) in both. The effect is the difference under W8A8.
"""

from __future__ import annotations

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Judged, NotApplicable, all_of
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite
from skerry.claims.studies import BASELINE, Study
from skerry.claims.words import counted, span

VARIANT = ("scaled",)
COMPRESSIONS = ("w8a8-tensor", "magnitude-50%")


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    study = Study(evidence)
    label = study.among(VARIANT)[0]
    changes: dict[str, Interval] = {c: study.versus(label, f"change {c}") for c in COMPRESSIONS}
    if absent := [c for c, i in changes.items() if i.value != i.value]:
        raise NotApplicable(f"the study did not measure {' and '.join(absent)}")
    verdict = all_of([opposite(decide(i, 0.0)) for i in changes.values()])
    told = "; ".join(
        f"{c} costs {span(study.value(label, f'change {c}'))} beside {span(study.value(BASELINE, f'change {c}'))}, difference {span(i)}"
        for c, i in changes.items()
    )
    why = f"Over {counted(study.num_seeds, 'seed')}, nats per token: {told}."
    figure = study.figure("change w8a8-tensor", [label], "Cost of W8A8 beside softmax", "nats per token")
    return Judged(verdict, why, changes[COMPRESSIONS[0]], figure)


CLAIM = Claim(
    id="5.3b",
    section="5.3",
    source="the review, section 5.3; An et al. 2025 (arXiv 2502.06415)",
    statement="Attention with an explicit scale makes the model robust to quantization and pruning.",
    measured="In a study of trainings: what W8A8 per tensor and pruning half of the weights by magnitude add to the held-out loss of `scaled`, beside softmax of the same "
    "seeds and windows.",
    rule="Both cost less than softmax's, with whole 95 % intervals over seeds and windows. Supported when both hold, refuted when one costs more with its whole "
    "interval, else inconclusive.",
    effect_name="cost of W8A8, difference",
    unit="nats per token",
    needs=("study_arms", "study_quantities"),
    judge=judge,
)
