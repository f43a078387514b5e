"""Gated attention of Qiu et al. 2025 (arXiv 2505.06708): out = y * sigmoid(x W), behind attention and before the output projection.

x is the normed input that the projections read. `qwen-gate`: a gate per channel, W [d_model, num_heads head_dim]; `qwen-gate-headwise`: one
per head, W [d_model, num_heads]. No bias: with W = 0 every gate is 1/2, and the output is half of softmax attention's.
It differs from `scaled` by its range, (0, 1), and from `gate-all` by having no bias; the paper finds that sparse gates end sinks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class QwenGate(Variant):
    """A gate for every channel of every head."""

    name = "qwen-gate"
    source = "Qiu et al. 2025, G1 elementwise"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """A linear layer as large as the query projection."""
        super().__init__(config, layer)
        self.gate = nn.Linear(config.hidden_size, self.num_heads * self.width, bias=False)

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        """Multiply every channel."""
        return y * torch.sigmoid(self.gate(x)).view(y.shape).to(y.dtype)


class QwenGateHeadwise(QwenGate):
    """A gate for every head."""

    name = "qwen-gate-headwise"
    source = "Qiu et al. 2025, G1 headwise"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """A linear layer from the stream to a number per head."""
        Variant.__init__(self, config, layer)
        self.gate = nn.Linear(config.hidden_size, self.num_heads, bias=False)

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        """Multiply every head."""
        return y * torch.sigmoid(self.gate(x))[..., None].to(y.dtype)


VARIANTS = (QwenGate, QwenGateHeadwise)
