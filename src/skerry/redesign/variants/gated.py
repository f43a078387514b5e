"""Gated attention of Bondarenko et al. 2023 (arXiv 2306.12929), section 4.2: out_h = sigmoid(G_h(x)) y_h, one scalar per head and token.

    gate-linear    G_h: linear, from head h's slice of x to 1                             num_heads (d + 1) parameters
    gate-mlp       G_h: linear to d / 4, ReLU, linear to 1, on head h's slice            num_heads (d^2 / 4 + d / 2 + 1)
    gate-all       G: linear, from all of x to one number per head                       num_heads (d_model + 1)

x is what the projections read, a slice is d_model / num_heads wide. W ~ N(0, 0.02), and the bias starts at logit(pi): every gate at pi.
`gate-all` differs from `scaled-1` by its start.  Limit: gates of one are softmax attention.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skerry.errors import UnknownOption
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class GateAll(Variant):
    """Every gate reads all channels."""

    name = "gate-all"
    source = "Bondarenko et al. 2023, section 4.2, all heads"

    def __init__(self, config: DecoderConfig, layer: int, *, pi: float = 0.5) -> None:
        """Gates that start near `pi`."""
        super().__init__(config, layer)
        if not 0 < pi < 1:
            raise UnknownOption(f"attention {self.name!r}: pi is {pi}; it must lie between 0 and 1")
        self.start = math.log(pi / (1 - pi))
        self._make(config)

    def _make(self, config: DecoderConfig) -> None:
        self.gate = nn.Linear(config.hidden_size, self.num_heads)

    def reset(self, std: float) -> None:
        """W ~ N(0, std), b = logit(pi)."""
        nn.init.normal_(self.gate.weight, std=std)
        nn.init.constant_(self.gate.bias, self.start)

    def gates(self, x: Float[Tensor, "sample position channel"]) -> Float[Tensor, "sample position head"]:
        """G(x)."""
        return self.gate(x)

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        """Multiply every head."""
        return y * torch.sigmoid(self.gates(x))[..., None].to(y.dtype)


class GateLinear(GateAll):
    """Every gate reads its head's slice."""

    name = "gate-linear"
    source = "Bondarenko et al. 2023, section 4.2, linear"

    def _make(self, config: DecoderConfig) -> None:
        self.slice = _slice(self.name, config)
        self.gate_weight = nn.Parameter(torch.zeros(self.num_heads, self.slice))
        self.gate_bias = nn.Parameter(torch.zeros(self.num_heads))

    def reset(self, std: float) -> None:
        """W ~ N(0, std), b = logit(pi)."""
        nn.init.normal_(self.gate_weight, std=std)
        nn.init.constant_(self.gate_bias, self.start)

    def gates(self, x: Tensor) -> Tensor:
        """G_h of the slice of head h."""
        return (
            torch.einsum("bnhc,hc->bnh", x.unflatten(-1, (-1, self.slice)), self.gate_weight) + self.gate_bias
        )


class GateMLP(GateLinear):
    """Every gate is a small network on its head's slice."""

    name = "gate-mlp"
    source = "Bondarenko et al. 2023, section 4.2, MLP"

    def _make(self, config: DecoderConfig) -> None:
        self.slice = _slice(self.name, config)
        inner = max(1, self.slice // 4)
        self.inner_weight = nn.Parameter(torch.zeros(self.num_heads, inner, self.slice))
        self.inner_bias = nn.Parameter(torch.zeros(self.num_heads, inner))
        self.gate_weight = nn.Parameter(torch.zeros(self.num_heads, inner))
        self.gate_bias = nn.Parameter(torch.zeros(self.num_heads))

    def reset(self, std: float) -> None:
        """Both W ~ N(0, std); b = 0 inside, logit(pi) outside."""
        super().reset(std)
        nn.init.normal_(self.inner_weight, std=std)
        nn.init.zeros_(self.inner_bias)

    def gates(self, x: Tensor) -> Tensor:
        """G_h of the slice of head h."""
        heads = x.unflatten(-1, (-1, self.slice))
        inner = F.relu(torch.einsum("bnhc,hic->bnhi", heads, self.inner_weight) + self.inner_bias)
        return torch.einsum("bnhi,hi->bnh", inner, self.gate_weight) + self.gate_bias


def _slice(name: str, config: DecoderConfig) -> int:
    width, over = divmod(config.hidden_size, config.num_attention_heads)
    if over:
        raise UnknownOption(
            f"attention {name!r}: {config.hidden_size} channels do not divide into {config.num_attention_heads} slices; "
            "take another width, or gate-all"
        )
    return width


VARIANTS = (GateLinear, GateMLP, GateAll)
