"""Key-value retrieval by distance.

The input is n pairs of random tokens, then n questions with their answers:

    k1 v1 k2 v2 ... kn vn   k_a v_a k_b v_b ...          a, b, ... drawn evenly and independently

At every questioned key the model is scored on the value that belongs to it. The answered questions before are the few shots that show
what is asked, so no instruction has to be followed; the draws are independent, so earlier answers say nothing about the next.

    accuracy         share of questions whose right value has the largest logit among the n values shown; chance 1 / n
    log_probability  of the right value among all tokens, nats; an even guess gives -log V
    distance         from the questioned key back to its nearest earlier place, in tokens

Liu et al. 2023 (arXiv 2307.03172), section 3, in the form of Arora et al. 2023 (arXiv 2312.04927): keys and values are single random
tokens, all different. Limit: a model that copies what followed the same token before has accuracy 1 at every distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from skerry.redesign.battery.choosing import among, of_all, stack
from skerry.redesign.battery.material import Material, digest
from skerry.redesign.battery.score import Place, Score, mean_parts
from skerry.redesign.battery.subject import Subject
from skerry.redesign.battery.task import NotApplicable, Outcome, Task

MOST_PAIRS, FEWEST_PAIRS = 16, 4
ALONG = "distance in tokens"


class Questions(NamedTuple):
    """Inputs of pairs and questions.

    Attributes:
        ids: The inputs.
        values: v1 to vn of each input.
        places: Where the questioned keys are; the same in all inputs.
        asked: Number of the pair that each question asks for, from 0.
        distance: Tokens back to the nearest earlier place of the same key.
    """

    ids: Int[Tensor, "sample position"]
    values: Int[Tensor, "sample pair"]
    places: Int[Tensor, "question"]
    asked: Int[Tensor, "sample question"]
    distance: Int[np.ndarray, "sample question"]


def questions(material: Material) -> Questions:
    """Draw the inputs.

    Raises:
        NotApplicable: Too few positions or tokens.
    """
    room, start = material.room - len(material.prefix), len(material.prefix)
    num = min(MOST_PAIRS, room // 4, len(material.pool) // 2)
    if num < FEWEST_PAIRS:
        raise NotApplicable(
            f"{FEWEST_PAIRS} pairs and as many questions take {4 * FEWEST_PAIRS + start} positions and {2 * FEWEST_PAIRS} different "
            f"ids; there are {material.room} and {len(material.pool)}"
        )
    rng = material.generator("retrieval")
    drawn = np.stack([rng.choice(material.pool, 2 * num, replace=False) for _ in range(material.num_inputs)])
    asked = rng.integers(num, size=(material.num_inputs, num))
    keys, values = drawn[:, :num], drawn[:, num:]
    told = np.stack([keys, values], axis=2)
    answers = np.take_along_axis(told, asked[:, :, None], axis=1)
    body = np.concatenate([told, answers], axis=1).reshape(len(drawn), -1)
    return Questions(
        material.begun(body),
        torch.from_numpy(values.astype(np.int64)),
        torch.arange(start + 2 * num, start + 4 * num, 2),
        torch.from_numpy(asked),
        _distances(asked),
    )


def _distances(asked: Int[np.ndarray, "sample question"]) -> Int[np.ndarray, "sample question"]:
    """Two tokens for every pair or question in between, and two for the step itself."""
    num = asked.shape[1]
    result = np.empty_like(asked)
    for row, pairs in enumerate(asked):
        last = {pair: pair for pair in range(num)}
        for question, pair in enumerate(pairs.tolist()):
            result[row, question] = 2 * (num + question - last[pair])
            last[pair] = num + question
    return result


def run(subject: Subject, material: Material) -> Outcome:
    """See above."""
    given = questions(material)
    chosen, every = [], []
    right = given.values.gather(1, given.asked)
    for rows, logits in subject.read(given.ids):
        asked = logits[:, given.places]
        chosen.append(among(asked, given.values[rows], given.asked[rows]))
        every.append(of_all(asked, right[rows]))
    accuracy = stack(chosen).accuracy.numpy()
    log_probability = stack(every).log_probability.numpy()
    num = given.values.shape[1]
    key, scores = digest(given.ids), []
    for place, counts in _bands(given.distance):
        weights = counts.sum(1)
        where: dict[str, Any] = {"place": place, "inputs": key, "seed": material.seed}
        scores += [
            Score(
                "retrieval",
                "accuracy",
                f"share of questions answered, among {num} values",
                mean_parts(_mean(accuracy, counts), weights),
                kind="share",
                chance=1 / num,
                chance_is=f"a guess among {num} values",
                **where,
            ),
            Score(
                "retrieval",
                "log_probability",
                "log-probability of the right value among all tokens, nats",
                mean_parts(_mean(log_probability, counts), weights),
                chance=-math.log(subject.vocab),
                chance_is="an even guess",
                **where,
            ),
        ]
    return Outcome(scores)


def _bands(distance: np.ndarray) -> Iterator[tuple[Place | None, np.ndarray]]:
    """All questions, then those at 2 to 8, 10 to 16, 18 to 32, ... tokens."""
    yield None, np.ones_like(distance, dtype=bool)
    low, high = 1, 8
    while low <= distance.max():
        yield Place(ALONG, low, high), (distance >= low) & (distance <= high)
        low, high = high + 1, 2 * high


def _mean(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(counts, x, 0.0).sum(1) / counts.sum(1)


TASK = Task(
    "retrieval",
    "Does it find the value of a key, and how far back?",
    "Liu et al. 2023 (arXiv 2307.03172); Arora et al. 2023 (arXiv 2312.04927)",
    run,
)
