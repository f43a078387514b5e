"""QK-norm: l_ij = RMSNorm(q_i) . RMSNorm(k_j) / sqrt d, each over one head's channels with a gain of its own, before positions.

Henry et al. 2020 (arXiv 2010.04245) with a norm of length one; RMSNorm with gains as in Qwen 3 and OLMo 2. A logit is at most sqrt(d) times the
two gains, however large the stream grows.
Limit: queries and keys of mean square one, and gains of one: softmax attention.
"""

from __future__ import annotations

from torch import Tensor

from skerry.redesign.config import DecoderConfig
from skerry.redesign.norms import RMSNorm
from skerry.redesign.variant import Heads, Variant


class QKNorm(Variant):
    """Queries and keys of bounded size."""

    name = "qk-norm"
    source = "Henry et al. 2020; Qwen 3"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """Two gains per channel of a head."""
        super().__init__(config, layer)
        self.q_norm = RMSNorm(self.width, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.width, config.rms_norm_eps)

    def before(self, heads: Heads, x: Tensor) -> Heads:
        """Norm queries and keys."""
        return Heads(self.q_norm(heads.query), self.k_norm(heads.key), heads.value)


VARIANTS = (QKNorm,)
