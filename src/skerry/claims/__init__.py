"""Is the literature right about this model? One test per published statement, each with a rule that was fixed in advance."""

from __future__ import annotations

from skerry.claims.claim import Claim, Figure, Result, Verdict
from skerry.claims.evidence import Evidence
from skerry.claims.register import all_claims, list_claims, stages_of
from skerry.claims.run import document, judge_run, read_results, run_claims

__all__ = [
    "Claim",
    "Evidence",
    "Figure",
    "Result",
    "Verdict",
    "all_claims",
    "document",
    "judge_run",
    "list_claims",
    "read_results",
    "run_claims",
    "stages_of",
]
