"""3.3c  Outliers act as implicit, context-aware scaling: sinks take attention away and bring nothing.

See `roles` of this folder for the rule that the three hypotheses share.
"""

from __future__ import annotations

from skerry.claims.claim import Claim
from skerry.claims.roles import NEEDS, RULE, judging

ROLE = "implicit scaling"

CLAIM = Claim(
    id="3.3c",
    section="3.3",
    source="An et al. 2025 (arXiv 2502.06415)",
    statement="Outliers act as implicit, context-aware scaling: sinks take attention away and bring nothing.",
    measured="As 3.3a; share of what sinks do that the scaling by (1 - sink mass) explains, whole model.",
    rule=RULE.format(role=ROLE, more=""),
    effect_name="share of scaling",
    unit="share",
    needs=NEEDS,
    judge=judging(ROLE),
)
