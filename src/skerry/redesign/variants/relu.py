"""ReLU attention: out_i = sum_j A_ij v_j,  A_ij = relu(l_ij) / n_i,  l_ij = q_i . k_j / sqrt d,  n_i = the number of keys that query i sees.

Wortsman et al. 2023 (arXiv 2309.08586), and the control of Guo et al. 2024 (arXiv 2410.13835, section 3): a query that looks for nothing has
weights of zero, because they need not sum to one. With `divided=False`, A_ij = relu(l_ij): the weight of one key does not shrink with the length.
Limit: all logits below zero give no output at all; one key with logit 1 and `divided=False` gives its value.
"""

from __future__ import annotations

from torch import Tensor

from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class Relu(Variant):
    """Weights are the positive parts of the logits."""

    name = "relu"
    source = "Wortsman et al. 2023; Guo et al. 2024, section 3"
    is_fused = False

    def __init__(self, config: DecoderConfig, layer: int, *, divided: bool = True) -> None:
        """With `divided`, by the number of keys that a query sees."""
        super().__init__(config, layer)
        self.divided = divided

    def weights(self, logits: Tensor) -> Tensor:  # type: ignore[override]
        """[sample head query key], from logits that are -inf where hidden."""
        weights = logits.relu()
        return weights / logits.isfinite().sum(-1, keepdim=True) if self.divided else weights


VARIANTS = (Relu,)
