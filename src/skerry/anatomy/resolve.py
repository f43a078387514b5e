"""From a model to its anatomy: a declared family where there is one, else one traced forward."""

from __future__ import annotations

from torch import nn

from skerry.anatomy.families import family_of
from skerry.anatomy.model import Anatomy, bind, dims_of, find_trunk, get
from skerry.anatomy.watch import probe
from skerry.errors import UnresolvedArchitecture


def resolve(model: nn.Module) -> Anatomy:
    """Name the places of a model.

    Raises:
        UnresolvedArchitecture: No list of blocks was found.
    """
    config = getattr(model, "config", None)
    declared = family_of(getattr(config, "model_type", "")) if config is not None else None
    if declared is None:
        raise UnresolvedArchitecture(f"{type(model).__name__} is not declared")
    family = declared.for_config(config)
    blocks = get(find_trunk(model), family.blocks)
    if not blocks:
        raise UnresolvedArchitecture(
            f"{type(model).__name__} should keep its blocks at {family.blocks!r} (family {family.name}), but has none there"
        )
    anatomy = bind(model, family, dims_of(model, config, blocks), list(blocks))
    probe(anatomy)
    return anatomy
