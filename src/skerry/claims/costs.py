"""Reading the tables of costs and taming: changes of the damage with their intervals, schemes by their bits, methods by their names.

Damage is the loss of a model that predicts tokens (nats per token), the distance of the last hidden states of an encoder (in variances of
each channel). Two bars are shared by the claims that read it:

    SEVERE    0.1      perplexity 11 % up; a tenth of the variance of the hidden states
    LOSSLESS  0.02     perplexity 2 % up, what good methods reach at 8 bits (SmoothQuant, OS+, LLM.int8); a fiftieth of the variance
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import NotApplicable
from skerry.claims.evidence import Evidence, Row

if TYPE_CHECKING:
    from skerry.impact.scheme import Scheme

SEVERE, LOSSLESS = 0.1, 0.02
DAMAGE = ("loss", "distance")
UNITS = {"loss": "nats per token", "distance": "of the last hidden states, in variances"}
ORIGINAL, NONE, FLOAT = "original", "none", "float"
PLAIN = ("rtn", NONE)
"""Methods that do nothing before rounding; the first that was measured is what others are compared with."""


OS_PLUS = ("os+published", "os+")
"""OS+ as its authors publish it, and with the choices that were added here."""
CLIPPING = "clip"
"""The method that clips and does nothing else."""


class Cost(NamedTuple):
    """What a method costs under a scheme.

    Attributes:
        method: The method, or pipeline.
        scheme: The scheme, as in the table.
        change: Change of the damage. Of several seeds the mean, with the outermost ends.
    """

    method: str
    scheme: str
    change: Interval


def changed(row: Row) -> Interval:
    """The change of a row, with its interval over inputs."""
    return Interval(*(math.nan if row[k] is None else row[k] for k in ("change", "ci_low", "ci_high")))


def damage_rows(evidence: Evidence, table: str) -> list[Row]:
    """The rows of a table that say what was damaged and by how much, in one outcome.

    Raises:
        NotApplicable: There are none; the notes of the stage say why.
    """
    rows = [r for r in evidence.rows(table) if r["change"] is not None and math.isfinite(r["change"])]
    outcome = next((o for o in DAMAGE if any(r["outcome"] == o for r in rows)), None)
    if outcome is None:
        raise NotApplicable(f"neither a loss nor a distance was measured for `{table}`")
    return [r for r in rows if r["outcome"] == outcome]


@cache
def scheme_of(text: str) -> Scheme | None:
    """A scheme of a table; None for the float model and for what no scheme says."""
    from skerry.errors import UnknownOption
    from skerry.impact.scheme import Scheme

    if text in (ORIGINAL, NONE, FLOAT):
        return None
    try:
        return Scheme.parse(text)
    except UnknownOption:
        return None


def integer_bits(text: str) -> int | None:
    """Bits of weights and inputs where both are the same whole number of bits, as in w8a8; None for any other scheme."""
    scheme = scheme_of(text)
    if scheme is None or scheme.weights is None or scheme.inputs is None:
        return None
    both = {scheme.weights.number, scheme.inputs.number}
    word = both.pop() if len(both) == 1 else ""
    return int(word[3:]) if re.fullmatch(r"int\d", word) else None


def is_per_tensor(text: str) -> bool:
    """Whether the inputs have one grid per tensor, as in w8a8-tensor: what the review describes."""
    scheme = scheme_of(text)
    return scheme is not None and scheme.inputs is not None and scheme.inputs.granularity == "tensor"


def os_plus(methods: Iterable[str]) -> str | None:
    """The name under which OS+ was measured: as published where it was, else as it is here; None where it was not."""
    names = set(methods)
    return next((name for name in OS_PLUS if name in names), None)


def costs(evidence: Evidence) -> list[Cost]:
    """What every method costs under every scheme, seeds together.

    Raises:
        NotApplicable: No method was measured.
    """
    by: dict[tuple[str, str], list[Interval]] = {}
    for r in damage_rows(evidence, "methods"):
        by.setdefault((r["method"], r["scheme"]), []).append(changed(r))
    return [Cost(method, scheme, together(found)) for (method, scheme), found in by.items()]


def together(seeds: list[Interval]) -> Interval:
    """Mean of several seeds, from the lowest end to the highest: never narrower than one of them."""
    ends = [[i.low for i in seeds], [i.high for i in seeds]]
    return Interval(sum(i.value for i in seeds) / len(seeds), min(ends[0]), max(ends[1]))


def outcome_of(evidence: Evidence, table: str) -> str:
    """How the damage of a table is called, with its unit."""
    name = damage_rows(evidence, table)[0]["outcome"]
    return f"{name}, {UNITS[name]}"


def plain_of(found: Iterable[Cost], scheme: str) -> Cost | None:
    """What the scheme costs with nothing done before rounding."""
    rows = [c for c in found if c.scheme == scheme]
    return next((c for name in PLAIN for c in rows if c.method == name), None)


def of_scheme(found: Iterable[Cost], scheme: str) -> Cost | None:
    """The cost under a scheme."""
    return next((c for c in found if c.scheme == scheme), None)
