"""The register: a claim is a file of this folder whose name begins with `c` and a digit, and that has a `CLAIM`.

Adding a claim is adding that file; nothing else lists it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from skerry.claims.claim import Claim
from skerry.claims.stages import FOLLOWED, STAGES, TRACE_STAGES, stage_of
from skerry.errors import UsageError, near_matches

_MODULE = re.compile(r"c\d\w*")


def all_claims() -> list[Claim]:
    """Every claim, by id.

    Raises:
        ValueError: Two files have the same id.
    """
    import sys

    package = __name__.rpartition(".")[0]
    names = [m.name for m in pkgutil.iter_modules(sys.modules[package].__path__) if _MODULE.fullmatch(m.name)]
    claims = [importlib.import_module(f"{package}.{name}").CLAIM for name in sorted(names)]
    if twice := {c.id for c in claims if [d.id for d in claims].count(c.id) > 1}:
        raise ValueError(f"two claims have the id {sorted(twice)[0]!r}")
    return sorted(claims, key=lambda claim: order(claim.id))


def order(identifier: str) -> tuple[tuple[int, str], ...]:
    """Sorts ids as a reader would: 2.2a, 2.10b, 10.1a."""
    return tuple((int(n) if n else -1, word) for n, word in re.findall(r"(\d*)([^\d]*)", identifier))


def select(only: Iterable[str] | None = None) -> list[Claim]:
    """The claims that some patterns of ids name, by id; all without a pattern.

    Args:
        only: Ids or patterns, e.g. `["3.*", "2.1a"]`; several may stand in one, separated by commas.

    Raises:
        UsageError: A pattern that no claim has.
    """
    claims = all_claims()
    if only is None:
        return claims
    words = [
        w for text in ([only] if isinstance(only, str) else only) for w in re.split(r"[,\s]+", text) if w
    ]
    patterns = [(word, word.lower()) for word in words]
    for word, pattern in patterns:
        if not any(fnmatchcase(c.id, pattern) for c in claims):
            near = near_matches(word, [c.id for c in claims])
            raise UsageError(
                f"no claim has the id {word!r}{f'; did you mean {near}?' if near else ''}. `skerry claims --list` lists all {len(claims)}"
            )
    return [c for c in claims if any(fnmatchcase(c.id, p) for _, p in patterns)]


def stages_of(only: Iterable[str] | None = None) -> set[str]:
    """The stages beyond the scan that these claims need, names of `skerry.claims.stages.STAGES`; none where the scan is enough.

    Those of a trace are lifecycle, effects and roles, the others are `impact_...` and `tame`.

    Raises:
        UsageError: A pattern that no claim has.
    """
    stages = {stage for claim in select(only) for table in claim.needs if (stage := stage_of(table))}
    # What is changed and asked was found by following it first.
    return stages | {"lifecycle"} if stages & {*TRACE_STAGES, *FOLLOWED} else stages


def list_claims(only: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """What `--list` shows: one plain row per claim, nothing measured.

    Raises:
        UsageError: A pattern that no claim has.
    """
    return [
        {
            "id": c.id,
            "section": c.section,
            "statement": c.statement,
            "source": c.source,
            "measured": c.measured,
            "rule": c.rule,
            "effect_name": c.effect_name,
            "unit": c.unit,
            "needs": list(c.needs),
            "stages": [s for s in STAGES if any(stage_of(t) == s for t in c.needs)],
        }
        for c in select(only)
    ]
