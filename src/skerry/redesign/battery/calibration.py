"""Calibration of the next-token distribution p: of what it gives 30 %, do 30 % happen? Text within the training length.

    ECE = sum over bins b of |hits_b - confidence_b| / number of predictions

with hits_b the events of bin b that happened and confidence_b the sum of their probabilities. Three sets of events:

    ece          the most likely token of each prediction, 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599)
    ece_all      every token of the vocabulary: bins (2^-(k+1), 2^-k], k = 0 to 19, and one below; equal widths would put nearly all of
                 them into the first bin. So it is the share of probability that lies in the wrong place (as the class-wise error of Nixon
                 et al. 2019, arXiv 1904.01685, with all classes in one)
    ece_rest     the same without the most likely token: what it says about the others
    brier        mean over predictions of sum over v of (p_v - [v happened])^2 (Brier 1950); an even guess gives 1 - 1 / V

The chance level of an ECE is what a perfectly calibrated model would show on as many predictions: noise has no sign in a sum of sizes, so
it is sum_b sqrt(2 / pi * var_b) / N, var_b the variance of hits_b if p were true. Limit: tokens drawn from p itself give that level; an
even prediction of evenly drawn tokens gives 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.redesign.battery.material import Material, digest
from skerry.redesign.battery.score import PER_BIN, Score, mean_parts
from skerry.redesign.battery.subject import Subject
from skerry.redesign.battery.task import NotApplicable, Outcome, Task

WIDTHS, POWERS = 15, 20
EVENTS = {
    "ece": "the most likely token",
    "ece_all": "every token of the vocabulary",
    "ece_rest": "every token but the most likely one",
}
# Probabilities in hand at once, float64.
_AT_ONCE = 2**21


class Binned(NamedTuple):
    """Sums of each input: per bin hits, confidence and variance, and at the end the number of predictions.

    Attributes:
        top: Of the most likely token.
        every: Of every token.
        rest: Of every token but the most likely one.
        brier: Sum over predictions of the Brier score, and their number.
    """

    top: Float[np.ndarray, "sample part"]
    every: Float[np.ndarray, "sample part"]
    rest: Float[np.ndarray, "sample part"]
    brier: Float[np.ndarray, "sample two"]


def bin_predictions(
    logits: Float[Tensor, "sample place token"], happened: Int[Tensor, "sample place"]
) -> Binned:
    """The sums of one batch."""
    step = max(1, _AT_ONCE // logits.shape[-1])
    parts: list[list[Binned]] = []
    for x, y in zip(logits, happened.to(logits.device), strict=True):
        parts.append([_bin(a, b) for a, b in zip(x.split(step), y.split(step), strict=True)])
    per_input = [[np.sum([p[i] for p in some], axis=0) for some in parts] for i in range(len(Binned._fields))]
    return Binned(*(np.stack(x) for x in per_input))


def _bin(logits: Float[Tensor, "place token"], happened: Int[Tensor, "place"]) -> Binned:
    # Half precision of a device that knows no float64 is summed on the CPU.
    p = (logits.cpu() if logits.device.type == "mps" else logits).double().softmax(-1)
    hit = torch.zeros_like(p).scatter_(1, happened.to(p.device)[:, None], 1.0)
    top = p.max(-1)
    first = top.indices[:, None]
    width = (top.values * WIDTHS).ceil().long().clamp(1, WIDTHS) - 1
    of_top = _sums(width[:, None], top.values[:, None], hit.gather(1, first), WIDTHS)
    power = (-p.log2()).clamp(0, POWERS).long()
    every = _sums(power, p, hit, POWERS + 1)
    without = torch.ones_like(p).scatter_(1, first, 0.0)
    rest = _sums(power, p * without, hit * without, POWERS + 1)
    brier = ((p - hit) ** 2).sum()
    return Binned(of_top, every, rest, np.array([float(brier), float(len(p))]))


def _sums(bins: Int[Tensor, "place event"], p: Tensor, hit: Tensor, num: int) -> Float[np.ndarray, "part"]:
    """Of the events of one prediction at most one happens, so the hits in a bin have the variance of one trial: m (1 - m), m their mass."""
    zeros = torch.zeros(len(p), num, dtype=p.dtype, device=p.device)
    mass, hits = zeros.scatter_add(1, bins, p), zeros.scatter_add(1, bins, hit)
    triple = torch.stack([hits.sum(0), mass.sum(0), (mass * (1 - mass).clamp_min(0.0)).sum(0)], dim=1)
    return np.append(triple.flatten().cpu().numpy(), float(len(p)))


def calibrated_level(parts: Float[np.ndarray, "sample part"]) -> float:
    """Expected error of a perfectly calibrated model on as many predictions."""
    total = parts.sum(0)
    variance = total[:-1].reshape(-1, PER_BIN)[:, 2]
    return float(np.sqrt(2 / math.pi * variance).sum() / total[-1])


def run(subject: Subject, material: Material) -> Outcome:
    """See above."""
    if material.text is None:
        raise NotApplicable(material.text_is)
    ids = material.text[:, : material.room]
    first = max(1, len(material.prefix))
    if ids.shape[1] <= first:
        raise NotApplicable(f"windows of {ids.shape[1]} tokens predict nothing")
    found = [
        bin_predictions(logits[:, first - 1 : -1], ids[rows, first:]) for rows, logits in subject.read(ids)
    ]
    all_ = Binned(*(np.concatenate(x) for x in zip(*found, strict=True)))
    common: dict[str, Any] = {"inputs": digest(ids), "seed": material.seed, "better": "lower"}
    scores = []
    for (name, what), parts in zip(EVENTS.items(), all_[:3], strict=True):
        scores.append(
            Score(
                "calibration",
                name,
                f"calibration error of {what}, share of probability",
                parts,
                kind="ece",
                chance=calibrated_level(parts),
                chance_is="a calibrated model's noise",
                **common,
            )
        )
    sums, count = all_.brier.T
    scores.append(
        Score(
            "calibration",
            "brier",
            "Brier score of the next token, 0 to 2",
            mean_parts(sums / count, count),
            chance=1 - 1 / subject.vocab,
            chance_is="an even guess",
            **common,
        )
    )
    return Outcome(scores)


TASK = Task(
    "calibration",
    "Do its probabilities mean what they say?",
    "Guo et al. 2017 (arXiv 1706.04599); Brier 1950",
    run,
)
