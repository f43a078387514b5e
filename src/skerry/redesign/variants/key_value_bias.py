"""A key and a value that are no token: out = (1 - p') y + p' v',  p'_i = e^s_i / (e^s_i + sum_j e^l_ij),  s_i = q_i . k' scale.

`kv-bias`: variant (d) of An et al. 2025 (arXiv 2502.06415), the attention bias of Sun et al. 2024; learned k' and v' per query head,
N(0, 0.02). y is softmax attention and q_i the query after positions, so that k' is the key of a place that does not move.
`key-bias`: v' = 0 (Gu et al. 2025, arXiv 2410.10781): a sink whose logit depends on the query, where `sink-logit` has a constant.
Limit: v' = 0 turns the first into the second; k' = 0 gives the sink the logit 0 (off-by-one); without the sink it is softmax attention.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skerry.redesign.attend import Sink
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class KeyBias(Variant):
    """A learned key per head whose value is zero."""

    name = "key-bias"
    source = "k* with v* = 0 of Gu et al. 2025"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """One key per query head."""
        super().__init__(config, layer)
        self.key_bias = nn.Parameter(torch.zeros(self.num_heads, self.width))

    def reset(self, std: float) -> None:
        """K' ~ N(0, std)."""
        nn.init.normal_(self.key_bias, std=std)

    def sink(self, query: Tensor) -> Sink:
        """The logit that k' gets from every query, scaled as any other."""
        return Sink(sink_logit(query, self.key_bias))


class KeyValueBias(KeyBias):
    """A learned key and a learned value per head."""

    name = "kv-bias"
    source = "(d) of An et al. 2025; Sun et al. 2024"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """One key and one value per query head."""
        super().__init__(config, layer)
        self.value_bias = nn.Parameter(torch.zeros(self.num_heads, self.width))

    def reset(self, std: float) -> None:
        """k', v' ~ N(0, std)."""
        super().reset(std)
        nn.init.normal_(self.value_bias, std=std)

    def sink(self, query: Tensor) -> Sink:
        """As of `key-bias`, with the value v'."""
        return Sink(sink_logit(query, self.key_bias), self.value_bias)


def sink_logit(
    query: Float[Tensor, "sample head query channel"], key: Float[Tensor, "head channel"]
) -> Float[Tensor, "sample head query"]:
    """Q . k' / sqrt(channel)."""
    return torch.einsum("bhqc,hc->bhq", query, key.to(query)) * query.shape[-1] ** -0.5


VARIANTS = (KeyBias, KeyValueBias)
