"""Sigmoid attention: out_i = sum_j sigmoid(l_ij - log n) v_j, with n = i, the number of keys that query i sees (`sigmoid`), or T (`sigmoid-length`).

Ramapuram et al. 2024 (arXiv 2409.04431) with n the length of the sequence; An et al. 2025 (arXiv 2502.06415), variant (f), with n = T, the
length of the block. Weights of a query need not sum to one, so none has to go anywhere. T is the context that the decoder is trained on,
and not the length of the call: generation with a cache, one query at a time, would compute another function.
Limit: logits far below zero give softmax without its sum, e^l / n; equal logits of 0 give 1 / (n + 1) to every key.
"""

from __future__ import annotations

import math

from torch import Tensor

from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class Sigmoid(Variant):
    """Every weight for itself; the bias grows with the number of keys that the query sees."""

    name = "sigmoid"
    source = "Ramapuram et al. 2024"
    is_fused = False

    def weights(self, logits: Tensor) -> Tensor:  # type: ignore[override]
        """[sample head query key], from logits that are -inf where hidden."""
        seen = logits.isfinite().sum(-1, keepdim=True).clamp(min=1).to(logits)
        return (logits - seen.log()).sigmoid()


class SigmoidLength(Sigmoid):
    """Every weight for itself; one bias for all queries."""

    name = "sigmoid-length"
    source = "(f) of An et al. 2025"

    def __init__(self, config: DecoderConfig, layer: int, *, length: int | None = None) -> None:
        """T is `length`, or max_position_embeddings."""
        super().__init__(config, layer)
        self.log_length = math.log(length or config.max_position_embeddings)

    def weights(self, logits: Tensor) -> Tensor:  # type: ignore[override]
        """[sample head query key], from logits that are -inf where hidden."""
        return (logits - self.log_length).sigmoid()


VARIANTS = (Sigmoid, SigmoidLength)
