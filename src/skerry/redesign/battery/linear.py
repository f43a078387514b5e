"""A linear rule, learnt in context. Garg et al. 2022 (arXiv 2208.01066) in tokens, as the linear classification of Wei et al. 2023
(arXiv 2303.03846, section 6): w ~ N(0, I) is the input's own, x in {-1, +1}^d, y = sign(w . x).

    x_11 ... x_1d y_1  x_21 ... x_2d y_2 ...          x_ij is one of two random tokens of the input that stand for -1 and +1

No x is shown twice, so looking up the same x is no way out: the rule has to be generalised. In the place before each y the model is scored.

    accuracy         share of the second half of the examples whose y has the larger logit of the two; chance 1 / 2
    log_probability  of the right y among the two, nats; chance -log 2
    least_squares    accuracy of sign(w' . x) on the same places, w' the least-squares fit of smallest norm to the examples before: what can
                     be known. It is no score of the model and is in the table `solvable`

What it means for a small model trained on text: no text teaches this, and Garg et al. train for it alone, so expect chance; a difference
between two models at chance is none. Limit: an even prediction gives exactly 1 / 2 and -log 2.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.redesign.battery.choosing import among, stack
from skerry.redesign.battery.material import Material, digest
from skerry.redesign.battery.score import Place, Score, mean_parts
from skerry.redesign.battery.subject import Subject
from skerry.redesign.battery.task import NotApplicable, Outcome, Task

MOST_EXAMPLES, FEWEST_EXAMPLES = 24, 6
ALONG = "example"
_BAND = 4


class Examples(NamedTuple):
    """Inputs of a linear rule.

    Attributes:
        ids: The inputs.
        labels: The tokens of -1 and +1 of each input's y.
        places: The token before each y.
        right: 0 for y = -1, 1 for +1.
        x: -1 or +1.
    """

    ids: Int[Tensor, "sample position"]
    labels: Int[Tensor, "sample label"]
    places: Int[Tensor, "example"]
    right: Int[Tensor, "sample example"]
    x: Float[np.ndarray, "sample example dimension"]


def examples(material: Material) -> Examples:
    """Draw the inputs: five dimensions where there is room, else four or three.

    Raises:
        NotApplicable: Too few positions or tokens.
    """
    start = len(material.prefix)
    room = material.room - start
    dims = next((d for d in (5, 4, 3) if room // (d + 1) >= min(16, 2**d)), 3)
    num = min(MOST_EXAMPLES, room // (dims + 1), 2**dims)
    if num < FEWEST_EXAMPLES or len(material.pool) < 4:
        raise NotApplicable(
            f"{FEWEST_EXAMPLES} examples take {FEWEST_EXAMPLES * (dims + 1) + start} positions and 4 different ids; there are "
            f"{material.room} and {len(material.pool)}"
        )
    rng = material.generator("linear")
    corners = np.array([[1 if (i >> j) & 1 else -1 for j in range(dims)] for i in range(2**dims)])
    bodies, labels, right, xs = [], [], [], []
    for _ in range(material.num_inputs):
        tokens = rng.choice(material.pool, 4, replace=False)
        x = corners[rng.permutation(len(corners))[:num]]
        y = (x @ rng.standard_normal(dims) > 0).astype(np.int64)
        rows = np.concatenate([tokens[(x > 0).astype(np.int64)], tokens[2:][y][:, None]], axis=1)
        bodies.append(rows.reshape(-1))
        labels.append(tokens[2:])
        right.append(y)
        xs.append(x.astype(np.float64))
    return Examples(
        material.begun(np.stack(bodies)),
        torch.from_numpy(np.stack(labels).astype(np.int64)),
        torch.arange(num) * (dims + 1) + dims - 1 + start,
        torch.from_numpy(np.stack(right)),
        np.stack(xs),
    )


def least_squares(given: Examples) -> Float[np.ndarray, "sample example"]:
    """Whether the least-squares fit to the examples before each one gives its y: 1, 0, or 1/2 where it says nothing."""
    y = 2.0 * given.right.numpy() - 1.0
    result = np.full(y.shape, 0.5)
    for i in range(1, y.shape[1]):
        w = np.einsum("sde,se->sd", np.linalg.pinv(given.x[:, :i]), y[:, :i])
        said = np.einsum("sd,sd->s", w, given.x[:, i])
        result[:, i] = np.where(np.abs(said) < 1e-9, 0.5, said * y[:, i] > 0)
    return result


def run(subject: Subject, material: Material) -> Outcome:
    """See above."""
    given = examples(material)
    found = stack(
        [
            among(logits[:, given.places], given.labels[rows], given.right[rows])
            for rows, logits in subject.read(given.ids)
        ]
    )
    accuracy, log_probability = found.accuracy.numpy(), found.log_probability.numpy()
    num = accuracy.shape[1]
    common: dict[str, Any] = {"inputs": digest(given.ids), "seed": material.seed}
    half = slice(num // 2, num)
    scores = _pair(accuracy[:, half], log_probability[:, half], None, common)
    for first in range(0, num, _BAND):
        band = slice(first, min(first + _BAND, num))
        place = Place(ALONG, first + 1, band.stop)
        scores += _pair(accuracy[:, band], log_probability[:, band], place, common)
    solvable = least_squares(given)
    rows = [{"example": i + 1, "least_squares": float(solvable[:, i].mean())} for i in range(num)]
    ceiling = float(solvable[:, half].mean())
    note = (
        f"linear: {given.x.shape[2]} dimensions; least squares on the same examples is right {ceiling:.0%} of the time in the second "
        "half, and a model trained on text alone is expected at chance"
    )
    return Outcome(scores, [note], {"solvable": rows})


def _pair(
    accuracy: np.ndarray, log_probability: np.ndarray, place: Place | None, common: dict[str, Any]
) -> list[Score]:
    guess = {"chance_is": "a guess between 2 labels", "place": place, **common}
    return [
        Score(
            "linear",
            "accuracy",
            "share of examples given their label, between 2",
            mean_parts(accuracy.mean(1)),
            kind="share",
            chance=0.5,
            **guess,
        ),
        Score(
            "linear",
            "log_probability",
            "log-probability of the label between 2, nats",
            mean_parts(log_probability.mean(1)),
            chance=-math.log(2),
            **guess,
        ),
    ]


TASK = Task(
    "linear",
    "Does it learn a linear rule in context?",
    "Garg et al. 2022 (arXiv 2208.01066); Wei et al. 2023 (arXiv 2303.03846)",
    run,
)
