"""Judging: claims over the evidence of a run, one by one, and the results as a document."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from skerry.claims.claim import Claim, Judged, NotApplicable, Result
from skerry.claims.register import all_claims, order, select
from skerry.claims.stages import command_of

if TYPE_CHECKING:
    from skerry.claims.evidence import Evidence
    from skerry.run import Run

SCHEMA = 1
VERDICTS = ("supported", "refuted", "inconclusive", "not applicable")
STAGE = "claims"


def run_claims(evidence: Evidence, only: Iterable[str] | None = None) -> list[Result]:
    """Judge claims.

    Args:
        evidence: What was measured.
        only: Ids or patterns of ids; all without.

    Returns:
        One result per claim, by id. What a claim needs and the run does not have makes it not applicable, with the reason.

    Raises:
        UsageError: A pattern that no claim has.
    """
    return [judge(claim, evidence) for claim in select(only)]


def judge(claim: Claim, evidence: Evidence) -> Result:
    """Judge one claim."""
    start = time.perf_counter()
    try:
        absent = [name for name in claim.needs if not evidence.has(name)]
        if absent:
            raise NotApplicable(f"needs {_tables(absent)}, which this run does not have; {_commands(absent)}")
        judged = claim.judge(evidence)
    except NotApplicable as reason:
        judged = Judged("not applicable", str(reason))
    effect = judged.effect
    return Result(
        id=claim.id,
        section=claim.section,
        source=claim.source,
        statement=claim.statement,
        measured=claim.measured,
        rule=claim.rule,
        verdict=judged.verdict,
        why=judged.why,
        effect=None if effect is None else _finite(effect.value),
        effect_name=claim.effect_name,
        unit=claim.unit,
        low=None if effect is None else _finite(effect.low),
        high=None if effect is None else _finite(effect.high),
        figure=judged.figure,
        seconds=time.perf_counter() - start,
    )


def judge_run(run: Run, only: Iterable[str] | None = None) -> list[Result]:
    """Judge claims on a run and keep the results in it, as `claims.json`.

    Results of other claims that were judged on the same measurements stay there; any others go.

    Returns:
        The results asked for.

    Raises:
        UsageError: A pattern that no claim has.
        RunExists: Another process is writing the run.
    """
    from skerry.claims.evidence import Evidence

    start = time.perf_counter()
    results = run_claims(Evidence.of_run(run), only)
    with run.writing():
        key = _key(run)
        kept = [] if only is None else _kept(run, key, {r.id for r in results})
        both = sorted([*kept, *results], key=lambda r: order(r.id))
        if not _same(run, key, both):
            text = json.dumps(document(both), allow_nan=False)
            run.finish(STAGE, key, texts={"claims.json": text}, seconds=time.perf_counter() - start)
    return results


def read_results(run: Run) -> list[Result]:
    """The results that a run holds; none where claims were not judged."""
    if not run.has("claims.json"):
        return []
    return [Result.model_validate(row) for row in json.loads(run.text("claims.json"))["claims"]]


def document(results: Iterable[Result]) -> dict[str, Any]:
    """The results as one JSON document: how many of each verdict, then every claim."""
    rows = list(results)
    return {
        "schema": SCHEMA,
        "verdicts": {v: sum(r.verdict == v for r in rows) for v in VERDICTS},
        "claims": [r.model_dump(mode="json") for r in rows],
    }


def _key(run: Run) -> str:
    """Key of everything that decides the results: the measurements and the claims' own words."""
    files = {
        f"{stage}/{name}": file.sha256
        for stage, record in run.record.stages.items()
        if stage not in (STAGE, "report")
        for name, file in record.files.items()
    }
    told = [[c.id, c.measured, c.rule, list(c.needs)] for c in all_claims()]
    return hashlib.sha256(json.dumps([SCHEMA, files, told], sort_keys=True).encode()).hexdigest()[:16]


def _kept(run: Run, key: str, judged: set[str]) -> list[Result]:
    known = {c.id for c in all_claims()}
    fresh = run.has("claims.json") and run.finished(STAGE, key)
    return [r for r in read_results(run) if r.id in known - judged] if fresh else []


def _same(run: Run, key: str, results: list[Result]) -> bool:
    """Whether these results are there already; the time that judging took does not count."""
    if not run.has("claims.json") or not run.finished(STAGE, key):
        return False
    old = [r.model_copy(update={"seconds": 0.0}) for r in read_results(run)]
    return old == [r.model_copy(update={"seconds": 0.0}) for r in results]


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _commands(absent: list[str]) -> str:
    commands = list(dict.fromkeys(command_of(name) for name in absent))
    plain = commands == ["skerry scan"]
    told = " and ".join(f"`{c}`" for c in commands)
    return (
        f"{told} {'measures' if len(commands) == 1 else 'measure'} {'it' if len(absent) == 1 else 'them'}"
        + (" where the model has it" if plain else "")
    )


def _tables(names: list[str]) -> str:
    named = ", ".join(f"`{name}`" for name in names)
    return f"the table{'s' if len(names) > 1 else ''} {named}"
