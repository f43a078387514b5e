"""Bias of the values: what a sink adds, without the mass that it takes.

    value-bias     out = y + v'                                       one vector of num_heads * head_dim, behind the heads; starts at 0
    context-bias   out = y + p' v',  p' = e^s / (e^s + sum_j e^l_ij),  s = q . k' scale             k', v' per head, N(0, 0.02)

Variants (b) and (c) of An et al. 2025 (arXiv 2502.06415): y is softmax attention and keeps its full mass, so neither can scale it. With
(1 - p') y in place of y the second is `kv-bias`.
Limit: v' = 0 is softmax attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.redesign.attend import Sink
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant
from skerry.redesign.variants.key_value_bias import KeyValueBias


class ValueBias(Variant):
    """The same vector for every token, in front of the output projection."""

    name = "value-bias"
    source = "(b) of An et al. 2025"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """One vector for all heads."""
        super().__init__(config, layer)
        self.value_bias = nn.Parameter(torch.zeros(self.num_heads, self.width))

    def reset(self, std: float) -> None:
        """Zero: softmax attention."""
        nn.init.zeros_(self.value_bias)

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        """Add it."""
        return y + self.value_bias.to(y.dtype)


class ContextBias(KeyValueBias):
    """A vector per head, by how much the query looks for its key."""

    name = "context-bias"
    source = "(c) of An et al. 2025"

    def sink(self, query: Tensor) -> Sink:
        """As of `kv-bias`, added to attention that keeps its mass."""
        return super().sink(query)._replace(is_added=True)


VARIANTS = (ValueBias, ContextBias)
