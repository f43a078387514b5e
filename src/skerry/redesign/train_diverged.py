"""Where a training broke: the first site whose values are not finite, in the order in which the model computes.

The weights are still those that made the value (`train_step.py`), so the batch is run once more with every site watched. When all activations
are finite, the loss or a gradient is not: then the parameter whose gradient broke first in the backward pass, which is the last in the model.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy import Site, resolve, watch
from skerry.anatomy.quiet import quiet


def first_bad_place(model: nn.Module, ids: Int[Tensor, "sample position"], autocast: torch.autocast) -> str:
    """Name what is not finite, in words; gradients are read as the backward pass left them."""
    weight = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if weight is not None:
        return f"the weights {weight} are not finite"
    bad: list[tuple[Site, float]] = []

    def look(site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if not bad and not torch.isfinite(x).all():
            bad.append((site, 1 - float(torch.isfinite(x).float().mean())))

    anatomy = resolve(model)
    eager = torch.compiler.set_stance("force_eager")
    with quiet(model), torch.no_grad(), autocast, eager, watch(anatomy, on_activation=look):
        logits = model(ids).logits
    if bad:
        return f"the first site that is not finite is {bad[0][0]} ({bad[0][1]:.0%} of its values)"
    if not torch.isfinite(logits).all():
        return "all sites are finite and the logits are not"
    gradient = [
        n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    if gradient:
        return f"all activations are finite; the gradient of {gradient[-1]} is not ({len(gradient)} parameters are hit)"
    return "all activations of the plain forward are finite; the loss itself is not"
