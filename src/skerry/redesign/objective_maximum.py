"""Penalties on the largest values of an activation: the outliers themselves, not the shape of the tails.

    limit       mean_t sum_j relu(|x_tj| - limit)^2                   nothing below the limit is touched
    soft        mean_t tau (log sum_j exp(|x_tj| / tau) - log d)      a smooth maximum over the channels of a token

The first is a hinge with a squared excess; the second is the log-sum-exp bound  max - tau log d <= soft <= max  (Boyd and Vandenberghe 2004,
section 3.1.5). Both are in the units of the activation, so a smaller stream lowers them too.
Limits: `limit` is 0 while nothing is above the limit; `soft` of equal values is their size, and tends to max_j |x_tj| for tau -> 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

FORMS = ("limit", "soft")


def maximum(
    x: Float[Tensor, "sample position channel"],
    *,
    form: str = "limit",
    limit: float = 10.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """The penalty of one activation, differentiable; computed in at least float32.

    Args:
        x: The activation.
        form: `limit` or `soft`.
        limit: For `limit`: largest |x| that costs nothing.
        temperature: For `soft`: tau.
    """
    size = (x if x.dtype == torch.float64 else x.float()).abs()
    if form == "limit":
        return ((size - limit).relu() ** 2).sum(-1).mean()
    return (temperature * (torch.logsumexp(size / temperature, -1) - math.log(x.shape[-1]))).mean()
