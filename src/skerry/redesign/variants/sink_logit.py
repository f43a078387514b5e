"""Sink logit without value: out = (1 - p') y,  p' = e^s / (e^s + sum_j e^l_ij),  y softmax attention, one learned s per head.

gpt-oss 2025; softmax-off-by-one (Miller 2023) is s = 0, fixed. A query that looks for nothing can give its mass to the sink instead of to a token;
the factor (1 - p') is the scale that a sink token with value zero would give.
Limit: s = -inf is plain softmax attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.redesign.attend import Sink
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class SinkLogit(Variant):
    """A learned logit per head; starts at 0."""

    name = "sink-logit"
    source = "gpt-oss 2025; k* bias with v* = 0 of Gu et al. 2025, constant"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """One number per head."""
        super().__init__(config, layer)
        self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))

    def reset(self, std: float) -> None:
        """All zero: every head starts as softmax-off-by-one."""
        nn.init.zeros_(self.sinks)

    def sink(self, query: Tensor) -> Sink:
        """The learned logits."""
        return Sink(self.sinks)


class OffByOne(Variant):
    """One more logit, 0, in every softmax."""

    name = "off-by-one"
    source = "Miller 2023, softmax_1"

    def sink(self, query: Tensor) -> Sink:
        """Zero for every head."""
        return Sink(query.new_zeros(self.num_heads, dtype=torch.float32))


VARIANTS = (SinkLogit, OffByOne)
