"""3.3a  Outliers act as a fixed bias: what sinks bring could be a constant.

See `roles` of this folder for the rule that the three hypotheses share.
"""

from __future__ import annotations

from skerry.claims.claim import Claim
from skerry.claims.roles import NEEDS, RULE, judging

ROLE = "fixed bias"

CLAIM = Claim(
    id="3.3a",
    section="3.3",
    source="Sun et al. 2024 (arXiv 2402.17762)",
    statement="Outliers act as a fixed bias: what sinks bring could be a constant.",
    measured="Damage when sinks' contribution is replaced by its mean or dropped and when the scaling by (1 - sink mass) is frozen; share of what sinks do that a constant explains (Shapley value over the five arms), whole model.",
    rule=RULE.format(
        role=ROLE, more=", or when scaling or the dependence on context is needed (interval above 0.2)"
    ),
    effect_name="share of a fixed bias",
    unit="share",
    needs=NEEDS,
    judge=judging(ROLE),
)
