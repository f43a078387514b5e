"""Kurtosis penalties: how heavy the tails of an activation are, as a term of the loss.

    sequence   k = m4 / (s^4 + 1e-6)                 m4 and s (unbiased) of the T d values of one sequence, mean over sequences
    energy     k = mean_j e_j^2 / (mean_j e_j)^2     e_j = mean_t x_tj^2, over the channels j

`sequence` is the metric of Bondarenko et al. 2023 (arXiv 2306.12929); Nrusimha et al. 2024 (arXiv 2404.03605) train with the kurtosis of
activations as a penalty. `energy` is the metric of He et al. 2024 (arXiv 2405.19279): 1 when all channels carry equal energy, d when one carries
all. With a target the penalty is (k - target)^2, as in Shkolnik et al. 2020 (KURE, arXiv 2002.07520).
Both are free of scale: the penalty cannot be lowered by a smaller stream, only by a flatter one.
Limits: values +1 and -1 in equal number have `sequence` 1 (up to n / (n - 1) in s^2); equal channels have `energy` 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

FORMS = ("sequence", "energy")
_EPSILON = 1e-6


def kurtosis(
    x: Float[Tensor, "sample position channel"], *, form: str = "sequence", target: float | None = None
) -> Float[Tensor, ""]:
    """The penalty of one activation, differentiable; computed in at least float32.

    Args:
        x: The activation.
        form: `sequence` or `energy`.
        target: Distance from it, squared; None for the kurtosis itself.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    k = _sequence(wide) if form == "sequence" else _energy(wide)
    return (k if target is None else (k - target) ** 2).mean()


def _sequence(x: Tensor) -> Float[Tensor, "sample"]:
    flat = x.flatten(1)
    centred = flat - flat.mean(-1, keepdim=True)
    squares = centred * centred
    variance = squares.sum(-1) / (flat.shape[-1] - 1)
    return (squares * squares).mean(-1) / (variance * variance + _EPSILON)


def _energy(x: Tensor) -> Float[Tensor, ""]:
    energy = (x * x).flatten(0, -2).mean(0)
    return (energy * energy).mean() / energy.mean() ** 2
