"""SGD with momentum, from torch: b = mu b + (g + weight_decay w);  w = w - lr b  (Nesterov: w = w - lr (g + weight_decay w + mu b)).

The step is linear in the gradient, so it knows no channels: the limit against which coordinate-wise methods are held. Defaults: lr 0.1,
weight decay 3e-3, momentum 0.9.
"""

from __future__ import annotations

from torch.optim import SGD, Optimizer

from skerry.redesign.optimisers.kind import Group, Optimiser


def sgd(groups: list[Group], *, momentum: float = 0.9, nesterov: bool = False) -> Optimizer:
    """SGD over groups of parameters.

    Args:
        groups: With `lr` and `weight_decay` each.
        momentum: mu.
        nesterov: Look ahead by one step of momentum.
    """
    return SGD(groups, momentum=momentum, nesterov=nesterov)


OPTIMISER = Optimiser("sgd", "stochastic gradient descent with momentum", "torch", 0.1, 3e-3, sgd)
