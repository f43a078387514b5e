"""Sink logit with a value: out = (1 - p') y + p' v',  p' = e^s / (e^s + sum_j e^l_ij),  one learned s and v' per head.

Between `sink-logit` (v' = 0) and `kv-bias` (s depends on the query): variant (d) of An et al. 2025 (arXiv 2502.06415) with a logit that
does not look at the query.
Limit: s = -inf is plain softmax attention; v' = 0 is `sink-logit`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.redesign.attend import Sink
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variants.sink_logit import SinkLogit


class SinkValue(SinkLogit):
    """A learned logit and a learned value per head."""

    name = "sink-value"
    source = "sink logit of gpt-oss 2025 with the value of (d) of An et al. 2025"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """One number and one vector per head."""
        super().__init__(config, layer)
        self.value_bias = nn.Parameter(torch.zeros(self.num_heads, self.width))

    def reset(self, std: float) -> None:
        """Logits 0, values ~ N(0, std)."""
        super().reset(std)
        nn.init.normal_(self.value_bias, std=std)

    def sink(self, query: Tensor) -> Sink:
        """The learned logits and values."""
        return Sink(self.sinks, self.value_bias)


VARIANTS = (SinkValue,)
