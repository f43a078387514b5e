"""3.3b  Outliers act as a context-aware bias: what sinks bring must change with the input, and that is what they do.

See `roles` of this folder for the rule that the three hypotheses share.
"""

from __future__ import annotations

from skerry.claims.claim import Claim
from skerry.claims.roles import NEEDS, RULE, judging

ROLE = "context-aware bias"

CLAIM = Claim(
    id="3.3b",
    section="3.3",
    source="An et al. 2025 (arXiv 2502.06415), hypothesis of the review",
    statement="Outliers act as a context-aware bias: what sinks bring must change with the input, and that is what they do.",
    measured="As 3.3a; share of what sinks do that the dependence of their contribution on the context explains, whole model.",
    rule=RULE.format(role=ROLE, more=""),
    effect_name="share of context dependence",
    unit="share",
    needs=NEEDS,
    judge=judging(ROLE),
)
