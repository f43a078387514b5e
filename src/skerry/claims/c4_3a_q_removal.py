"""4.3a-q  The same as 4.3a in the quantized model: removing outliers hurts much more there too than removing random values.

Everything is as in 4.3a, with the model quantized (simulated) while outliers and controls are removed and while the model that they are
compared with is read; so the damage is beyond that of quantization. A quantizer that flattens outliers would leave nothing to remove.
"""

from __future__ import annotations

from skerry.claims.c4_3a_removal import judge as judge_removal
from skerry.claims.claim import Claim, Judged
from skerry.claims.evidence import Evidence

TABLE = "quantized_removal"


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    judged = judge_removal(evidence, table=TABLE)
    scheme = evidence.rows(TABLE)[0]["scheme"]
    return judged._replace(why=f"In the model quantized to {scheme}: {judged.why}")


CLAIM = Claim(
    id="4.3a-q",
    section="4.3",
    source="Dettmers et al. 2022 (arXiv 2208.07339), section 4; Sun et al. 2024 (arXiv 2402.17762)",
    statement="In the quantized model too, removing outliers hurts much more than removing equally many random values, or equally much energy.",
    measured="As 4.3a, with weights and inputs quantized both in the model that is changed and in the one it is compared with.",
    rule="As 4.3a: supported when the whole 95 % interval over inputs lies above twice every draw of both controls and above 0; refuted when it lies "
    "below twice the mean of the worse control; else inconclusive.",
    effect_name="damage / damage of the worse control",
    unit="times",
    needs=(TABLE,),
    judge=judge,
)
