"""Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for the rest; both from torch, as one optimiser.

B = mu B + (1 - mu) g;  O = NewtonSchulz(g + mu (B - g)) ~ U V^T of that matrix's singular value decomposition;
w = w - lr weight_decay w - 0.2 lr sqrt(max(rows, columns)) O.

All directions of a matrix move equally far, so no channel is privileged. The factor 0.2 sqrt(max(rows, columns)) gives O the root mean square of
an AdamW step (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves both. Embeddings, head, norms, biases and what a variant keeps per
head go to AdamW. Defaults: lr 3e-3, weight decay 0.1, momentum 0.95, Nesterov, 5 Newton-Schulz steps (in bfloat16, as published), AdamW's betas
(0.9, 0.95) and eps 1e-8.
"""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from skerry.errors import NotPossible
from skerry.redesign.optimisers.adamw import adamw
from skerry.redesign.optimisers.kind import Group, Optimiser
from skerry.redesign.optimisers.together import Together


def muon(
    groups: list[Group],
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    newton_schulz_steps: int = 5,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> Optimizer:
    """Muon and AdamW over groups of parameters.

    Args:
        groups: With `role`, `lr` and `weight_decay` each.
        momentum: mu.
        nesterov: Look ahead by one step of momentum.
        newton_schulz_steps: Iterations towards U V^T.
        betas: Of AdamW.
        eps: Of AdamW.

    Raises:
        NotPossible: The model has no matrices, or some with more than two axes, or this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise NotPossible(
            f"muon needs torch 2.9 or later, and this is {torch.__version__}; take 'soap' or 'adamw'"
        )
    matrices = [g for g in groups if g["role"] == "matrices"]
    rest = [g for g in groups if g["role"] != "matrices"]
    shapes = [tuple(p.shape) for g in matrices for p in g["params"]]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        other = next((s for s in shapes if len(s) != 2), None)
        raise NotPossible(
            f"muon moves matrices [row column], and this model has {f'one of shape {list(other)}' if other else 'none'}; take 'adamw'"
        )
    first = torch.optim.Muon(
        matrices,
        momentum=momentum,
        nesterov=nesterov,
        ns_steps=newton_schulz_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    return Together([first, adamw(rest, betas=betas, eps=eps)] if rest else [first])


OPTIMISER = Optimiser(
    "muon",
    "orthogonal updates of the blocks' matrices, AdamW elsewhere",
    "Jordan et al. 2024 (Muon), Liu et al. 2025 (arXiv 2502.16982); torch",
    3e-3,
    0.1,
    muon,
)
