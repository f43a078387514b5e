"""`auto`: the cheapest pipeline that reaches the target on held-out text, with the table of what was tried.

Pipelines are tried from cheap to dear, each from the untouched model. The target is a relative rise of the loss over the original's
(`0.01`: one per cent), of an encoder the distance of its last hidden states. The first whose mean reaches it is taken; when none does, the
best of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from skerry.errors import NotPossible, SkerryError
from skerry.impact.scheme import Scheme
from skerry.tame.held_out import HeldOut, damage_of
from skerry.tame.method import Row
from skerry.tame.pipeline import Tamed

TARGET = 0.01
CHEAP_TO_DEAR = ("rtn", "smoothquant", "os+", "gptq", "os+,gptq", "rotation,gptq", "spinquant,gptq")


class Choice(NamedTuple):
    """What `auto` chose.

    Attributes:
        tamed: The model after the chosen pipeline.
        row: Its row.
        rows: All rows, in the order in which they were tried.
        reached: Whether it reaches the target.
        why: The choice in words.
    """

    tamed: Tamed
    row: Row
    rows: list[Row]
    reached: bool
    why: str


def pipelines_for(scheme: Scheme) -> list[str]:
    """The pipelines worth trying for a scheme: rounding of weights only where weights are quantized below 16 bits, and so on."""
    if scheme.inputs is None:
        return ["rtn", "awq", "gptq", "awq,gptq", "rotation,gptq"] if scheme.weights is not None else ["rtn"]
    if scheme.weights is None:
        return [p for p in CHEAP_TO_DEAR if "gptq" not in p]
    return list(CHEAP_TO_DEAR)


def limit_of(original: Row, target: float) -> float:
    """The largest damage that reaches the target: a share of the original's loss; of an encoder the distance itself."""
    if original["outcome"] == "loss":
        return target * float(original["value"])
    return target


def choose(
    held_out: HeldOut,
    pipelines: Sequence[str],
    run: Callable[[str], Tamed],
    *,
    target: float = TARGET,
    tried: Callable[[Row], None] = lambda _row: None,
) -> Choice:
    """Try pipelines from cheap to dear.

    Args:
        held_out: Judges them.
        pipelines: Their names, from cheap to dear.
        run: Runs one on a fresh copy of the untouched model.
        target: Relative rise of the loss that is allowed.
        tried: Told each row.

    Raises:
        NotPossible: No pipeline can be run on this model.
    """
    limit = limit_of(held_out.original(), target)
    rows: list[Row] = []
    best: tuple[Tamed, Row] | None = None
    for name in pipelines:
        try:
            tamed = run(name)
        except NotPossible as error:
            rows.append({"method": name, "seed": held_out.seed, "chosen": False, "note": str(error)})
            tried(rows[-1])
            continue
        row = held_out.quantized(tamed)
        rows.append(row)
        tried(row)
        if best is None or damage_of(row) < damage_of(best[1]):
            best = (tamed, row)
        if damage_of(row) <= limit:
            why = f"{name} is the cheapest that keeps the {row['outcome']} within {limit:.4g} of the original ({damage_of(row):+.4g})"
            return _chosen(tamed, row, rows, reached=True, why=why)
    if best is None:
        raise NotPossible(
            "none of the pipelines can be run on this model: " + "; ".join(str(r["note"]) for r in rows)
        )
    tamed, row = best
    why = f"none reaches the target ({limit:.4g}); {tamed.name} comes nearest ({damage_of(row):+.4g})"
    return _chosen(tamed, row, rows, reached=False, why=why)


def _chosen(tamed: Tamed, row: Row, rows: list[Row], *, reached: bool, why: str) -> Choice:
    row["chosen"] = True
    return Choice(tamed, row, rows, reached, why)


def check_target(target: float) -> None:
    """Refuse a target that nothing can mean.

    Raises:
        SkerryError: It is not a number above 0.
    """
    if not (math.isfinite(target) and target > 0):
        from skerry.errors import UnknownOption

        raise UnknownOption(
            f"the target is {target}; give the relative rise of the loss that is allowed, e.g. 0.01 for one per cent"
        )


__all__ = [
    "CHEAP_TO_DEAR",
    "TARGET",
    "Choice",
    "SkerryError",
    "check_target",
    "choose",
    "limit_of",
    "pipelines_for",
]
