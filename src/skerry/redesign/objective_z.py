"""Logit z-loss: mean_t log^2 Z_t,  Z_t = sum_v exp(logit_tv), over the positions that predict a token.

Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), section 5, with weight 1e-4: it keeps the head's logits from drifting, which the cross-entropy,
blind to a shift of all logits, never does.
Limit: logits that are log-probabilities have Z = 1 and cost nothing; V equal logits of 0 cost log^2 V.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def z_loss(logits: Float[Tensor, "sample position token"]) -> Float[Tensor, ""]:
    """The penalty, differentiable; the last position predicts nothing that is known and does not count. At least float32."""
    some = logits[:, :-1]
    wide = some if some.dtype == torch.float64 else some.float()
    return (torch.logsumexp(wide, -1) ** 2).mean()
