"""4.3b-q  The same as 4.3b in the quantized model: outliers set to their mean do not hurt there either.

Everything is as in 4.3b, with the model quantized (simulated) all the while. The means are those of the quantized model.
"""

from __future__ import annotations

from skerry.claims.c4_3b_constant import judge as judge_constant
from skerry.claims.claim import Claim, Judged
from skerry.claims.evidence import Evidence

TABLE = "quantized_removal"


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    judged = judge_constant(evidence, table=TABLE)
    scheme = evidence.rows(TABLE)[0]["scheme"]
    return judged._replace(why=f"In the model quantized to {scheme}: {judged.why}")


CLAIM = Claim(
    id="4.3b-q",
    section="4.3",
    source="Sun et al. 2024 (arXiv 2402.17762); Chen et al. 2024, PrefixQuant (arXiv 2410.05265)",
    statement="In the quantized model too, setting outliers to their mean does not hurt: a constant suffices.",
    measured="As 4.3b, with weights and inputs quantized both in the model that is changed and in the one it is compared with.",
    rule="As 4.3b: supported when the whole 95 % interval over inputs lies below a quarter, refuted when it lies above, else inconclusive; not "
    "applicable where setting them to zero costs no more than random values.",
    effect_name="damage with the mean / with zero",
    unit="share",
    needs=(TABLE,),
    judge=judge,
)
