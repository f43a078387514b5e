"""Clipped softmax: out_i = sum_j clip((zeta - gamma) p_ij + gamma, 0, 1) v_j,  p softmax,  gamma = -alpha / T.

Bondarenko et al. 2023 (arXiv 2306.12929), section 4.1. T is the context that the decoder is trained on. A weight below -gamma / (zeta - gamma)
is exactly zero, with finite logits and no gradient, so a head can do nothing without a sink. The paper finds no use for zeta > 1 and alpha of
2 to 4; for causal models it reports that the outliers stay.
Limit: alpha = 0 and zeta = 1 is softmax attention.
"""

from __future__ import annotations

from torch import Tensor

from skerry.errors import UnknownOption
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class ClippedSoftmax(Variant):
    """Weights that reach zero."""

    name = "clipped-softmax"
    source = "Bondarenko et al. 2023, section 4.1"
    is_fused = False

    def __init__(self, config: DecoderConfig, layer: int, *, alpha: float = 4.0, zeta: float = 1.0) -> None:
        """Gamma is -alpha / max_position_embeddings."""
        super().__init__(config, layer)
        if alpha < 0 or zeta < 1:
            raise UnknownOption(
                f"attention {self.name!r}: alpha is {alpha} and zeta {zeta}; alpha must not be negative and zeta at least 1"
            )
        self.gamma, self.zeta = -alpha / config.max_position_embeddings, zeta

    def weights(self, logits: Tensor) -> Tensor:  # type: ignore[override]
        """[sample head query key], from logits that are -inf where hidden."""
        return ((self.zeta - self.gamma) * logits.softmax(-1) + self.gamma).clamp(0, 1)


VARIANTS = (ClippedSoftmax,)
