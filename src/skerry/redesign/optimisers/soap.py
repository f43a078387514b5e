"""SOAP (Vyas et al. 2024, arXiv 2409.11321), from pytorch-optimizer: Adam in the eigenbasis of Shampoo's preconditioner.

L = b L + (1 - b) g g^T = Q_L D Q_L^T and R likewise of g^T g; the moments are those of Q_L^T g Q_R, and the step is turned back. The bases are
computed anew every few steps by one power iteration. The first step only measures L and R and moves nothing.

Tables have a basis of their channel axis alone unless the vocabulary is the shorter one. Vectors are Adam's. Defaults: lr 3e-3, weight decay 0.1,
betas (0.95, 0.95), eps 1e-8, new bases every 10 steps, axes up to 4096 turned. State: L, R, Q_L, Q_R and two moments of every matrix.
"""

from __future__ import annotations

from torch.optim import Optimizer

from skerry.redesign.optimisers.kind import Group, Optimiser
from skerry.redesign.optimisers.library import from_library


def soap(
    groups: list[Group],
    *,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    largest_axis: int = 4096,
) -> Optimizer:
    """SOAP over groups of parameters.

    Args:
        groups: With `role`, `lr` and `weight_decay` each.
        betas: Decay of the two moments; the second is that of the preconditioner too.
        eps: Added to the root of the second moment.
        precondition_frequency: Steps between two bases.
        largest_axis: Longer axes are not turned.

    Raises:
        MissingExtra: pytorch-optimizer is not installed.
    """
    for group in groups:
        limit = largest_axis
        if group["role"] in ("embeddings", "head"):
            limit = min(limit, *(p.shape[-1] for p in group["params"]))
        group["max_precondition_dim"] = limit
    return from_library("SOAP")(groups, betas=betas, eps=eps, precondition_frequency=precondition_frequency)


OPTIMISER = Optimiser(
    "soap",
    "Adam in the eigenbasis of Shampoo's preconditioner",
    "Vyas et al. 2024 (arXiv 2409.11321); pytorch-optimizer",
    3e-3,
    0.1,
    soap,
)
