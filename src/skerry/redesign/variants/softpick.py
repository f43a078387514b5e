"""Softpick: A_ij = relu(e^l_ij - 1) / (sum_j |e^l_ij - 1| + eps).

Zuhri et al. 2025 (arXiv 2504.20966), "rectified softmax": a negative logit has weight zero and still counts in the sum, so weights sum to at
most one. Computed with the largest logit m taken out of both, e^(l - m) - e^-m, and eps on that scale.
Limit: large positive logits give softmax; logits of zero or less give no output at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skerry.redesign.variant import Variant

EPS = 1e-8


class Softpick(Variant):
    """Weights of the positive logits only."""

    name = "softpick"
    source = "Zuhri et al. 2025"
    is_fused = False

    def weights(self, logits: Tensor) -> Tensor:  # type: ignore[override]
        """[sample head query key], from logits that are -inf where hidden."""
        visible = logits.isfinite()
        # With all logits below zero, m = 0 keeps e^-m from overflowing; the value is the same but for eps.
        top = logits.amax(-1, keepdim=True).clamp(min=0)
        moved = torch.where(visible, (logits - top).exp() - (-top).exp(), 0.0)
        return moved.relu() / (moved.abs().sum(-1, keepdim=True) + EPS)


VARIANTS = (Softpick,)
