"""Value-state gate: out_i = sum_j p_ij g_j v_j,  g_j = sigmoid(v_j W_g + b), p softmax.

Bu et al. 2025 (arXiv 2510.09017), VGA: a gate computed from the value itself lets a token give nothing without a small value. One scalar per
key/value head and token here; W_g ~ N(0, 0.02), b = 0. The cache holds the gated values.
It differs from the gates behind attention by acting on the token that is read, not on the one that reads.
Limit: gates of one are softmax attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Heads, Variant


class ValueGate(Variant):
    """A gate on every value."""

    name = "value-gate"
    source = "Bu et al. 2025, VGA"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """One linear map to a number per key/value head."""
        super().__init__(config, layer)
        self.gate_weight = nn.Parameter(torch.zeros(self.num_kv_heads, self.width))
        self.gate_bias = nn.Parameter(torch.zeros(self.num_kv_heads))

    def reset(self, std: float) -> None:
        """W ~ N(0, std), b = 0."""
        nn.init.normal_(self.gate_weight, std=std)
        nn.init.zeros_(self.gate_bias)

    def before(self, heads: Heads, x: Tensor) -> Heads:
        """Multiply every value."""
        asked = (
            torch.einsum("bhnc,hc->bhn", heads.value, self.gate_weight.to(heads.value))
            + self.gate_bias[:, None]
        )
        return heads._replace(value=heads.value * torch.sigmoid(asked)[..., None].to(heads.value.dtype))


VARIANTS = (ValueGate,)
