"""Text by position: does what lies far back help, and what happens behind the last position of the training? T is the training length.

    loss          mean loss of the text within the first T tokens, nats per token
    context_gain  per input, loss of positions T/8 to T/4 less that of positions 3T/4 to T: what the longer context is worth
    beyond        per input, loss of positions T to 2T less that of positions T/2 to T
    by position   loss of T/16 to T/8, T/8 to T/4, T/4 to T/2, T/2 to T, T to 2T, 2T to 3T, ...

The in-context learning score of Olsson et al. 2022 (arXiv 2209.11895), with the sign turned, and the extrapolation of Press et al. 2021
(arXiv 2108.12409). A sink makes the first token part of what every later position reads, so this is where a model without one may
differ. Positions are those of the predicted token. Limits: a model that sees the last token alone has context_gain 0 and beyond 0 but for
the text's own trend; where positions are a table of T rows there is nothing beyond, and the row says that it is not applicable.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from skerry.redesign.battery.choosing import of_all
from skerry.redesign.battery.material import Material, digest
from skerry.redesign.battery.score import Place, Score, mean_parts
from skerry.redesign.battery.subject import Subject
from skerry.redesign.battery.task import NotApplicable, Outcome, Task

SHORTEST = 16
ALONG = "position"


def losses(subject: Subject, material: Material) -> Float[np.ndarray, "sample position"]:
    """Loss of the token at each position of the windows, nats; NaN where nothing is predicted: the prefix, or the first token.

    Raises:
        NotApplicable: There is no text.
    """
    if material.text is None:
        raise NotApplicable(material.text_is)
    ids = material.text
    result = np.full(tuple(ids.shape), np.nan)
    for rows, logits in subject.read(ids):
        found = of_all(logits[:, :-1], ids[rows, 1:])
        result[rows, 1:] = -found.log_probability.numpy()
    result[:, : max(1, len(material.prefix))] = np.nan
    return result


def run(subject: Subject, material: Material) -> Outcome:
    """See above."""
    if material.text is not None and (short := min(subject.length, material.text.shape[1])) < SHORTEST:
        raise NotApplicable(f"{short} tokens are too few to tell near from far; {SHORTEST} are needed")
    loss = losses(subject, material)
    assert material.text is not None
    size, t = loss.shape[1], min(subject.length, loss.shape[1])
    common: dict[str, Any] = {"inputs": digest(material.text), "seed": material.seed}

    def between(first: int, end: int) -> np.ndarray:
        some = loss[:, first:end]
        with np.errstate(invalid="ignore"):
            return np.nansum(some, 1) / np.isfinite(some).sum(1)

    def score(measure: str, what: str, values: np.ndarray, **more: Any) -> Score:
        return Score("recall", measure, what, mean_parts(values), **{**common, **more})

    guess = {"better": "lower", "chance": math.log(subject.vocab), "chance_is": "an even guess"}
    gain = between(t // 8, t // 4) - between(3 * t // 4, t)
    scores = [
        score("loss", f"loss of text within {t} tokens, nats per token", between(0, t), **guess),
        score(
            "context_gain",
            "loss that a longer context saves, nats per token",
            gain,
            chance=0.0,
            chance_is="context unused",
        ),
    ]
    notes = []
    if size >= 2 * t:
        rise = between(t, 2 * t) - between(t // 2, t)
        what = f"rise of the loss from positions {t // 2} to {t} to positions {t} to {2 * t}, nats per token"
        scores.append(score("beyond", what, rise, better="lower", chance=0.0, chance_is="no change"))
    else:
        notes.append(f"recall beyond the training length: not applicable, {_why(subject, size)}")
    edges = [t // 16, t // 8, t // 4, t // 2, *range(t, size + 1, t)]
    for first, end in itertools.pairwise(edges):
        place = Place(ALONG, first, end - 1)
        what = "loss of text by position, nats per token"
        scores.append(score("loss", what, between(first, end), place=place, **guess))
    return Outcome(scores, notes)


def _why(subject: Subject, size: int) -> str:
    if subject.is_limited:
        return f"the model has a table of {subject.length:,} positions and no more"
    return f"windows are {size:,} tokens long and the training length is {subject.length:,}"


TASK = Task(
    "recall",
    "Is text far back of use, and text beyond the training length still read?",
    "Olsson et al. 2022 (arXiv 2209.11895); Press et al. 2021 (arXiv 2108.12409)",
    run,
)
