"""All optimisers by name."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from skerry.errors import UnknownOption, near_matches
from skerry.redesign.optimisers import adam_eps, adamw, lion, muon, orthoadam, sgd, soap
from skerry.redesign.optimisers.kind import Optimiser
from skerry.redesign.optimisers.parameters import split_parameters

_FOUND = (
    adamw.OPTIMISER,
    adam_eps.OPTIMISER,
    sgd.OPTIMISER,
    lion.OPTIMISER,
    soap.OPTIMISER,
    muon.OPTIMISER,
    orthoadam.OPTIMISER,
)
_BY_NAME = {o.name: o for o in _FOUND}


def optimisers() -> tuple[Optimiser, ...]:
    """Every optimiser with its name, one line of what it is, its source and its defaults."""
    return _FOUND


def find_optimiser(name: str) -> Optimiser:
    """The optimiser of a name, in any case, with `-` or `_`.

    Raises:
        UnknownOption: With the near matches.
    """
    found = _BY_NAME.get(name.strip().lower().replace("_", "-"))
    if found is None:
        near = near_matches(name.strip().lower(), list(_BY_NAME))
        raise UnknownOption(
            f"there is no optimiser {name!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(_BY_NAME)}"
        )
    return found


def optimiser(
    name: str,
    model: nn.Module,
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    decay_embeddings: bool = False,
    **options: Any,
) -> Optimizer:
    """An optimiser over the trainable parameters of a model. Every group has the same `lr`; a schedule sets it in all of them.

    Args:
        name: Of `optimisers()`.
        model: Its parameters are sorted by `split_parameters`.
        lr: Peak learning rate; None takes the optimiser's default.
        weight_decay: Of matrices; norms, biases and what a variant keeps per head never decay. None takes the default.
        decay_embeddings: Whether the tables of embeddings decay as well.
        **options: The optimiser's own, see `Optimiser.options`.

    Raises:
        UnknownOption: A name, an option or a number that cannot be meant.
        MissingExtra: The library behind it is not installed.
        NotPossible: The model has no parameters it could train.
    """
    found = find_optimiser(name)
    lr = found.lr if lr is None else lr
    weight_decay = found.weight_decay if weight_decay is None else weight_decay
    if not (math.isfinite(lr) and lr > 0):
        raise UnknownOption(f"the learning rate is {lr}; it must be a finite number above 0")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise UnknownOption(f"the weight decay is {weight_decay}; it must be a finite number, 0 or above")
    for option in options:
        if option not in found.options:
            near = near_matches(option, list(found.options))
            raise UnknownOption(
                f"{found.name} has no option {option!r}{f'; did you mean {near}?' if near else '.'} It has {', '.join(found.options)}"
            )
    groups = split_parameters(model).groups(
        lr=lr, weight_decay=weight_decay, decay_embeddings=decay_embeddings
    )
    return found.build(groups, **options)
