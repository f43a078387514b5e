"""What a search wants to be small, measured on a trained decoder and its held-out windows.

    loss       mean loss of the next token, nats
    int8       the same with weights and inputs rounded to int8, one static range per tensor (w8a8-tensor)
    int4       the same with weights and inputs rounded to int4, a range per output channel and per token (w4a4)
    outlier    max over layers of  max |x| / median |x|  of the residual stream
    a scheme   the loss under it, in the words of `skerry impact`: w6a6, w4a16-g32, ...

Rounding is to nearest, by `skerry.impact`; static ranges come from windows of the training text. Limit: w16a16 gives the loss itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy import capture, resolve
from skerry.corpus import Batch
from skerry.errors import NotPossible, UnknownOption, near_matches
from skerry.impact.scheme import Scheme

BATCH = 32


class Goal(NamedTuple):
    """Something to be made small.

    Attributes:
        name: What users call it.
        meaning: In words.
        unit: Of its number.
        scheme: Under which the loss is measured; None for what is no loss under a scheme.
    """

    name: str
    meaning: str
    unit: str
    scheme: str | None = None


_NATS = "nats per token"
GOALS = {
    goal.name: goal
    for goal in (
        Goal("loss", "held-out loss", _NATS, "w16a16"),
        Goal("int8", "held-out loss in int8, one static range per tensor", _NATS, "w8a8-tensor"),
        Goal("int4", "held-out loss in int4, ranges per channel and token", _NATS, "w4a4"),
        Goal("outlier", "largest / median |x| of the residual stream, worst layer", "ratio"),
    )
}
DEFAULT = ("loss", "int4", "outlier")
_ABSENT = {"exposure": "canary exposure is not measured yet"}
_SCHEME = re.compile(r"(w|a|kv)\d|w?(mx|nv)?fp\d|(weights|inputs|kv|attention)=")


def find_goals(words: Sequence[str]) -> tuple[Goal, ...]:
    """The goals of some words, each once.

    Raises:
        UnknownOption: No goal and no scheme; with near matches.
        NotPossible: A goal that cannot be measured yet.
    """
    if not words:
        raise UnknownOption(f"a search needs a goal; there are {', '.join(GOALS)}, and schemes such as w6a6")
    return tuple(_find(word) for word in dict.fromkeys(words))


def _find(word: str) -> Goal:
    if word in GOALS:
        return GOALS[word]
    if word in _ABSENT:
        raise NotPossible(f"{_ABSENT[word]}, so {word!r} can be no goal; there are {', '.join(GOALS)}")
    if _SCHEME.match(word.lower()):
        return Goal(word, f"held-out loss under {word}", _NATS, str(Scheme.parse(word)))
    near = near_matches(word, [*GOALS, *_ABSENT])
    raise UnknownOption(
        f"there is no goal {word!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(GOALS)}, and schemes such as w6a6"
    )


def measure_goals(
    model: nn.Module,
    held_out: Int[Tensor, "sample position"],
    calibration: Int[Tensor, "calibrating position"],
    goals: Sequence[Goal],
) -> dict[str, float]:
    """The number of every goal.

    Args:
        model: A trained decoder; it is left as it was.
        held_out: Windows that judge.
        calibration: Windows that static ranges come from.
        goals: What is asked for.
    """
    from skerry.anatomy.quiet import quiet
    from skerry.impact.evaluate import Evaluator

    anatomy = resolve(model)
    with quiet(model):
        evaluator = Evaluator(anatomy, batches_of(held_out))
        found = {}
        for goal in goals:
            found[goal.name] = (
                worst_outlier(anatomy, held_out)
                if goal.scheme is None
                else _loss_under(goal.scheme, anatomy, evaluator, calibration)
            )
    return found


def _loss_under(words: str, anatomy: Any, evaluator: Any, calibration: Tensor) -> float:
    from skerry.impact.calibrate import calibrate
    from skerry.impact.simulate import Simulation

    scheme = Scheme.parse(words)
    if scheme == Scheme():
        return float(evaluator.original.loss)
    grids = calibrate(anatomy, batches_of(calibration), scheme)
    return float(evaluator.score(Simulation(scheme, grids=grids).open(anatomy)).loss)


def worst_outlier(anatomy: Any, input_ids: Int[Tensor, "sample position"]) -> float:
    """Max over layers of  max |x| / median |x|  of `resid.out` over all tokens and channels."""
    seen = capture(anatomy, input_ids, ["resid.out"])
    sizes = [x.abs().flatten().float() for x in seen.values()]
    return max(float(size.max() / size.median()) for size in sizes)


def batches_of(input_ids: Int[Tensor, "sample position"]) -> list[Batch]:
    """Windows without padding as batches."""
    numbers = torch.arange(len(input_ids))
    return [
        Batch(some, torch.ones_like(some, dtype=torch.bool), n)
        for some, n in zip(input_ids.split(BATCH), numbers.split(BATCH), strict=True)
    ]
