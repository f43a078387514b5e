"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), from torch, fused where the parameters' device has the kernel.

m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = w - lr (m^ / (sqrt(v^) + eps) + weight_decay w),
with m^, v^ corrected for their start at 0. Defaults: lr 3e-3, weight decay 0.1, betas (0.9, 0.95), eps 1e-8.
"""

from __future__ import annotations

import torch
from torch.optim import AdamW, Optimizer

from skerry.redesign.optimisers.kind import Group, Optimiser

_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def adamw(groups: list[Group], *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8) -> Optimizer:
    """AdamW over groups of parameters.

    Args:
        groups: With `lr` and `weight_decay` each.
        betas: Decay of the two moments.
        eps: Added to sqrt(v^).
    """
    return AdamW(groups, betas=betas, eps=eps, fused=_can_fuse(groups))


def _can_fuse(groups: list[Group]) -> bool:
    return all(
        p.device.type in _FUSED_DEVICES and torch.is_floating_point(p) for g in groups for p in g["params"]
    )


OPTIMISER = Optimiser(
    "adamw", "AdamW, fused", "Loshchilov & Hutter 2019 (arXiv 1711.05101); torch", 3e-3, 0.1, adamw
)
