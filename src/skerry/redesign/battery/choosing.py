"""A prediction scored against the right token, among the whole vocabulary or among a few candidates.

accuracy         1 / t where the right token is one of t that share the largest logit, else 0: a model that says nothing scores
                 exactly 1 / n among n candidates
log_probability  log softmax(logits)[right], over the candidates alone where there are some; -log n for a model that says nothing
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Chosen(NamedTuple):
    """Per place that is asked about, float64 on the CPU.

    Attributes:
        accuracy: Share of the choice that falls on the right token.
        log_probability: Of the right token, nats.
    """

    accuracy: Float[Tensor, "sample place"]
    log_probability: Float[Tensor, "sample place"]


def of_all(logits: Float[Tensor, "sample place token"], right: Int[Tensor, "sample place"]) -> Chosen:
    """Among the whole vocabulary; `right` are token ids."""
    right = right.to(logits.device)[..., None]
    own = logits.gather(-1, right)[..., 0]
    top = logits.amax(-1)
    ties = (logits == top[..., None]).sum(-1)
    accuracy = (own == top) / ties
    log_probability = own - logits.logsumexp(-1)
    return Chosen(accuracy.cpu().double(), log_probability.cpu().double())


def among(
    logits: Float[Tensor, "sample place token"],
    candidates: Int[Tensor, "sample candidate"],
    right: Int[Tensor, "sample place"],
) -> Chosen:
    """Among each input's candidates, which are different tokens; `right` counts them from 0."""
    picked = candidates.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
    return of_all(logits.gather(-1, picked), right)


def stack(parts: list[Chosen]) -> Chosen:
    """All inputs."""
    return Chosen(*(torch.cat(p) for p in zip(*parts, strict=True)))
