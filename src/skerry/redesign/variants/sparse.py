"""Sparse softmaxes: argmax over the simplex of  p . l + H(p), where softmax has Shannon's entropy.

    entmax15     H = (4/3) sum_j (p_j - p_j^1.5)        p_j = relu(l_j / 2 - tau)^2         Peters et al. 2019 (arXiv 1905.05702)
    sparsemax    H = (1/2) sum_j (p_j - p_j^2)          p_j = relu(l_j - tau)               Martins and Astudillo 2016 (arXiv 1602.02068)

Weights sum to one and can be exactly zero; the package `entmax` computes both, with their gradients.
Limit: one visible key has weight one; equal logits have equal weights, as under softmax.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from skerry.errors import MissingExtra
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant

# Further below the largest logit than any key with a weight can lie: 2 for entmax, 1 for sparsemax.
_HIDDEN = -100.0


class Entmax15(Variant):
    """Entmax with alpha = 1.5: between softmax and sparsemax."""

    name = "entmax15"
    source = "Peters et al. 2019"
    is_fused = False
    rule: ClassVar[str] = "entmax15"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        """Asks for the package before anything is trained."""
        super().__init__(config, layer)
        self._rule = _rule(self.rule)

    def weights(self, logits: Tensor) -> Tensor:  # type: ignore[override]
        """[sample head query key], from logits that are -inf where hidden."""
        top = logits.amax(-1, keepdim=True).detach()
        # The package adds up what it sorts, and -inf times zero is NaN.
        return self._rule(torch.where(logits.isfinite(), logits - top, _HIDDEN), dim=-1)


class Sparsemax(Entmax15):
    """The Euclidean projection of the logits on the simplex."""

    name = "sparsemax"
    source = "Martins and Astudillo 2016"
    rule = "sparsemax"


def _rule(name: str) -> Any:
    try:
        import entmax
    except ImportError as error:
        raise MissingExtra(f'attention {name!r} needs entmax: pip install "skerry[train]"') from error
    return getattr(entmax, name)


VARIANTS = (Entmax15, Sparsemax)
