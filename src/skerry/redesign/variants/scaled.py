"""Explicit context-aware scale: out = s(x) y,  s(x) = r sigmoid(x W + b),  y softmax attention; r = 2 (`scaled`) or r = 1 (`scaled-1`).

An et al. 2025 (arXiv 2502.06415), variant (e): one scalar per head and token, in (0, 2); W ~ N(0, 0.02), b = 0. Its twin with r = 1 can only
shrink a head, as a sink in the softmax can; it starts with b = 4, so that s starts near 1.
Limit: with W = 0 and r sigmoid(b) = 1 this is plain softmax attention.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class Scaled(Variant):
    """A scale in (0, 2) for every head and token."""

    name = "scaled"
    source = "(e) of An et al. 2025"
    largest: ClassVar[float] = 2.0
    start: ClassVar[float] = 0.0

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """One linear layer, from the stream to a number per head."""
        super().__init__(config, layer)
        self.gate = nn.Linear(config.hidden_size, config.num_attention_heads)

    def reset(self, std: float) -> None:
        """W ~ N(0, std)."""
        nn.init.normal_(self.gate.weight, std=std)
        nn.init.constant_(self.gate.bias, self.start)

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        """Multiply every head."""
        return y * (self.largest * torch.sigmoid(self.gate(x)))[..., None].to(y.dtype)


class ScaledDown(Scaled):
    """A scale in (0, 1) for every head and token."""

    name = "scaled-1"
    source = "twin of (e) of An et al. 2025, S <= 1"
    largest = 1.0
    start = 4.0


VARIANTS = (Scaled, ScaledDown)
