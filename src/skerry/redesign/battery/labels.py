"""A map from tokens to labels, learnt in context.

m random tokens have one of c random label tokens each, by a balanced random map f:

    x1 f(x1) x2 f(x2) ...          every x is shown n times; each round in a new random order

At every x the model is scored on its label. In the first round nothing can be known; what later rounds bring beyond it is learnt in context.

    accuracy         share of rounds 2 to n in which the right label has the largest logit among the c labels; chance 1 / c
    log_probability  of the right label among the c labels, nats; chance -log c
    gain             accuracy of rounds 2 to n, less that of round 1, which knows nothing: a model that prefers a label gains nothing

Unlike in `retrieval`, several keys share a value, so what was seen last or most does not help. Chan et al. 2022 (arXiv 2205.05055); labels
without a meaning are those of Wei et al. 2023 (arXiv 2303.03846). Limit: a model that copies what followed the same token before has
accuracy 1 from round 2 on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from skerry.redesign.battery.choosing import among, stack
from skerry.redesign.battery.material import Material, digest
from skerry.redesign.battery.score import Place, Score, mean_parts
from skerry.redesign.battery.subject import Subject
from skerry.redesign.battery.task import NotApplicable, Outcome, Task

NUM_TOKENS, NUM_LABELS, MOST_ROUNDS, FEWEST_ROUNDS = 8, 4, 5, 3
ALONG = "round"


class Rounds(NamedTuple):
    """Inputs of labelled tokens.

    Attributes:
        ids: The inputs.
        labels: The label tokens of each input.
        places: Where the x are, round after round; the same in all inputs.
        right: Number of each x's label.
        num_rounds: n.
    """

    ids: Int[Tensor, "sample position"]
    labels: Int[Tensor, "sample label"]
    places: Int[Tensor, "showing"]
    right: Int[Tensor, "sample showing"]
    num_rounds: int


def rounds(material: Material) -> Rounds:
    """Draw the inputs.

    Raises:
        NotApplicable: Too few positions or tokens.
    """
    start = len(material.prefix)
    num = min(MOST_ROUNDS, (material.room - start) // (2 * NUM_TOKENS))
    needed = NUM_TOKENS + NUM_LABELS
    if num < FEWEST_ROUNDS or len(material.pool) < needed:
        raise NotApplicable(
            f"{FEWEST_ROUNDS} rounds of {NUM_TOKENS} labelled tokens take {2 * NUM_TOKENS * FEWEST_ROUNDS + start} positions and "
            f"{needed} different ids; there are {material.room} and {len(material.pool)}"
        )
    rng = material.generator("labels")
    bodies, labels, right = [], [], []
    for _ in range(material.num_inputs):
        drawn = rng.choice(material.pool, needed, replace=False)
        tokens, names = drawn[:NUM_TOKENS], drawn[NUM_TOKENS:]
        of = rng.permutation(np.arange(NUM_TOKENS) % NUM_LABELS)
        order = np.concatenate([rng.permutation(NUM_TOKENS) for _ in range(num)])
        bodies.append(np.stack([tokens[order], names[of[order]]], axis=1).reshape(-1))
        labels.append(names)
        right.append(of[order])
    return Rounds(
        material.begun(np.stack(bodies)),
        torch.from_numpy(np.stack(labels).astype(np.int64)),
        torch.arange(start, start + 2 * NUM_TOKENS * num, 2),
        torch.from_numpy(np.stack(right)),
        num,
    )


def run(subject: Subject, material: Material) -> Outcome:
    """See above."""
    given = rounds(material)
    found = stack(
        [
            among(logits[:, given.places], given.labels[rows], given.right[rows])
            for rows, logits in subject.read(given.ids)
        ]
    )
    shape = (-1, given.num_rounds, NUM_TOKENS)
    accuracy = found.accuracy.reshape(shape).mean(2).numpy()
    log_probability = found.log_probability.reshape(shape).mean(2).numpy()
    common: dict[str, Any] = {"inputs": digest(given.ids), "seed": material.seed}
    scores = [
        _accuracy(accuracy[:, 1:].mean(1), None, common),
        _log_probability(log_probability[:, 1:].mean(1), None, common),
        Score(
            "labels",
            "gain",
            "accuracy after the first round, less that of the first",
            mean_parts(accuracy[:, 1:].mean(1) - accuracy[:, 0]),
            chance=0.0,
            chance_is="nothing learnt",
            **common,
        ),
    ]
    for i in range(given.num_rounds):
        place = Place(ALONG, i + 1, i + 1)
        scores += [
            _accuracy(accuracy[:, i], place, common),
            _log_probability(log_probability[:, i], place, common),
        ]
    return Outcome(scores)


def _accuracy(x: np.ndarray, place: Place | None, common: dict[str, Any]) -> Score:
    return Score(
        "labels",
        "accuracy",
        f"share of tokens given their label, among {NUM_LABELS}",
        mean_parts(x),
        kind="share",
        chance=1 / NUM_LABELS,
        chance_is=f"a guess among {NUM_LABELS} labels",
        place=place,
        **common,
    )


def _log_probability(x: np.ndarray, place: Place | None, common: dict[str, Any]) -> Score:
    return Score(
        "labels",
        "log_probability",
        f"log-probability of the label among {NUM_LABELS}, nats",
        mean_parts(x),
        chance=-math.log(NUM_LABELS),
        chance_is=f"a guess among {NUM_LABELS} labels",
        place=place,
        **common,
    )


TASK = Task(
    "labels",
    "Does it learn a map from tokens to labels in context?",
    "Chan et al. 2022 (arXiv 2205.05055); Wei et al. 2023 (arXiv 2303.03846)",
    run,
)
