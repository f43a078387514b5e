"""What the three hypotheses about sinks share: the verdicts and shares of `skerry.causes.roles_verdict`.

What sinks do has three shares that add up to 1: a fixed bias M (a constant), its dependence on context V, scaling S; a share is needed when
its whole interval lies above 0.2 and not needed when it lies below. The model's own verdict follows by a rule fixed there. A hypothesis is

    supported      the model's verdict is this role
    refuted        the verdict is another single role or no role; or its own share is not needed; or (fixed bias) another share is needed
    inconclusive   else: mixed, undecided

How many heads have which verdict is said with it, and drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Figure, Judged, NotApplicable, Verdict
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import NOTHING, share
from skerry.claims.words import counted, percent_span, span

ROLES = ("fixed bias", "context-aware bias", "implicit scaling")
SHARES = {
    "fixed bias": "fixed bias",
    "context-aware bias": "context dependence",
    "implicit scaling": "scaling",
}
"""Role to the share that makes it."""
NEEDED = 0.2
NEEDS = ("role_verdicts", "role_measures")
RULE = (
    "Supported when the role that the test gives the whole model is {role}; refuted when it is another single role or none, or when the whole "
    "95 % interval of its own share lies below 0.2{more}; else (mixed, undecided) inconclusive."
)


def judging(role: str) -> Callable[[Evidence], Judged]:
    """The test of one hypothesis."""
    return lambda evidence: judge(evidence, role)


def judge(evidence: Evidence, role: str) -> Judged:
    """See the module.

    Args:
        evidence: The run.
        role: One of `ROLES`.

    Raises:
        NotApplicable: No role was tested; the notes say why.
    """
    rows = evidence.rows("role_verdicts")
    model = next((r for r in rows if r["level"] == "model"), None)
    if model is None:
        raise NotApplicable("the roles of single heads were tested, not that of the model")
    shares = {name: _share(evidence, name) for name in SHARES.values()}
    own = shares[SHARES[role]]
    heads = Counter(r["verdict"] for r in rows if r["level"] == "head")
    num = sum(heads.values())
    part = share(heads[role], num)
    why = f"Whole model: {model['verdict']} ({model['why']}). The share of {SHARES[role]} is {span(own)}. "
    why += (
        f"Of {counted(num, 'head')} tested {heads[role]} {'has' if heads[role] == 1 else 'have'} this role, {percent_span(part)}."
        if num
        else "No head was tested alone."
    )
    return Judged(_verdict(role, str(model["verdict"]), shares), why, own, _figure(heads))


def _share(evidence: Evidence, name: str) -> Interval:
    for r in evidence.rows("role_measures"):
        if r["layer"] is None and r["head"] is None and r["measure"] == f"role share of {name}":
            return Interval(*(math.nan if r[k] is None else r[k] for k in ("value", "low", "high")))
    return NOTHING


def _verdict(role: str, found: str, shares: dict[str, Interval]) -> Verdict:
    if found == role:
        return "supported"
    if found in (*ROLES, "no role") or shares[SHARES[role]].high < NEEDED:
        return "refuted"
    others = (shares[name].low > NEEDED for other, name in SHARES.items() if other != role)
    return "refuted" if role == "fixed bias" and any(others) else "inconclusive"


def _figure(heads: Counter[str]) -> Figure | None:
    if not heads:
        return None
    names = [*ROLES, "mixed", "undecided", "no role"]
    return Figure(
        kind="bar",
        x=tuple(names),
        y=tuple(heads[name] for name in names),
        title="Role of each head with a sink",
        x_title="role",
        y_title="heads",
    )
