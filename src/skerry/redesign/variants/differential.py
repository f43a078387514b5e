"""Differential attention: out = (1 - lambda_0) RMSNorm((softmax(l1) - lambda softmax(l2)) v),  l1, l2 of half a head's channels each.

    lambda = e^(a1 . b1) - e^(a2 . b2) + lambda_0,        lambda_0 = 0.8 - 0.6 e^(-0.3 layer)          layer from 0;  a, b ~ N(0, 0.1)

Ye et al. 2024 (arXiv 2410.05258): noise that both maps share is subtracted. A head of d channels here is a head of the paper with d / 2
channels in q1, k1, q2, k2 and d in v, so that parameters are those of softmax attention; q1 is the even and q2 the odd channels, each
rotated with frequencies over the whole range. a and b are shared by the heads of a layer, the norm is over one head and has gains of its own.
Observers are shown the first map, softmax(l1), whose rows sum to one: the difference has rows of 1 - lambda and negative weights.
Limit: lambda = 0 and no norm (`normed=False`) is softmax attention of the even channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skerry.errors import UnknownOption
from skerry.redesign.attend import attend
from skerry.redesign.config import DecoderConfig
from skerry.redesign.norms import RMSNorm
from skerry.redesign.variant import Variant


class Differential(Variant):
    """One map less another; each runs on the fused kernel, with the other's channels at zero."""

    name = "differential"
    source = "Ye et al. 2024"

    def __init__(
        self, config: DecoderConfig, layer: int, *, lambda_0: float | None = None, normed: bool = True
    ) -> None:
        """Start of lambda, by the layer when None, and whether heads are normed."""
        super().__init__(config, layer)
        if self.width % 4:
            raise UnknownOption(
                f"attention {self.name!r}: a head of {self.width} channels; two rotated halves need a multiple of 4"
            )
        self.lambda_0 = 0.8 - 0.6 * math.exp(-0.3 * layer) if lambda_0 is None else lambda_0
        self.scale = (self.width // 2) ** -0.5
        self.lambdas = nn.Parameter(torch.zeros(4, self.width // 2))
        self.head_norm = RMSNorm(self.width, config.rms_norm_eps) if normed else None

    def reset(self, std: float) -> None:
        """N(0, 0.1), whatever the rest starts with."""
        nn.init.normal_(self.lambdas, std=0.1)

    def shown(self, query: Tensor) -> Tensor:
        """The queries of the first map: the odd channels are zero."""
        return query * (torch.arange(self.width, device=query.device) % 2 == 0)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
        """[sample head query channel]."""
        first = self.shown(query)
        a1, b1, a2, b2 = self.lambdas
        less = (a1 * b1).sum().exp() - (a2 * b2).sum().exp() + self.lambda_0
        one, two = (attend(q, key, value, mask=mask, scale=self.scale) for q in (first, query - first))
        return one - less.to(one.dtype) * two

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        """Norm every head."""
        return y if self.head_norm is None else self.head_norm(y) * (1 - self.lambda_0)


VARIANTS = (Differential,)
