"""AdamW with a large eps (He et al. 2024, arXiv 2405.19279): small gradients are no longer blown up to full steps.

Where sqrt(v^) << eps the step is lr m^ / eps, proportional to the gradient as in SGD; where it is larger, it is Adam's. He et al. find less
kurtosis of the hidden states with it. Defaults: lr 3e-3, weight decay 0.1, betas (0.9, 0.95), eps 1e-4 (1e-8 is `adamw`).
"""

from __future__ import annotations

from torch.optim import Optimizer

from skerry.redesign.optimisers.adamw import adamw
from skerry.redesign.optimisers.kind import Group, Optimiser


def adam_eps(
    groups: list[Group], *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-4
) -> Optimizer:
    """AdamW whose eps is large.

    Args:
        groups: With `lr` and `weight_decay` each.
        betas: Decay of the two moments.
        eps: Added to sqrt(v^).
    """
    return adamw(groups, betas=betas, eps=eps)


OPTIMISER = Optimiser(
    "adam-eps",
    "AdamW with a large eps (1e-4)",
    "He et al. 2024 (arXiv 2405.19279); torch",
    3e-3,
    0.1,
    adam_eps,
)
