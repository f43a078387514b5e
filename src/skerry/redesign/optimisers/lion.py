"""Lion (Chen et al. 2023, arXiv 2302.06675), from pytorch-optimizer: the sign of a blend of gradient and momentum.

w = w - lr weight_decay w - lr sign(b1 m + (1 - b1) g);  m = b2 m + (1 - b2) g.

Every entry moves by lr, so lr is about a tenth of Adam's and the weight decay ten times as large. Defaults: lr 3e-4, weight decay 1,
betas (0.9, 0.99).
"""

from __future__ import annotations

from torch.optim import Optimizer

from skerry.redesign.optimisers.kind import Group, Optimiser
from skerry.redesign.optimisers.library import from_library


def lion(groups: list[Group], *, betas: tuple[float, float] = (0.9, 0.99)) -> Optimizer:
    """Lion over groups of parameters.

    Args:
        groups: With `lr` and `weight_decay` each.
        betas: Of the blend and of the momentum.

    Raises:
        MissingExtra: pytorch-optimizer is not installed.
    """
    return from_library("Lion")(groups, betas=betas)


OPTIMISER = Optimiser(
    "lion",
    "sign of a blend of gradient and momentum",
    "Chen et al. 2023 (arXiv 2302.06675); pytorch-optimizer",
    3e-4,
    1.0,
    lion,
)
