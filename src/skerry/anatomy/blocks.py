"""The blocks of a model as modules, and another forward in a module's place for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site


def blocks_of(anatomy: Anatomy) -> list[nn.Module]:
    """The blocks in order, when each one's output is all that the next receives from it; else none."""
    taps = [anatomy.taps.get(Site(layer, "resid.out")) for layer in range(anatomy.dims.num_layers)]
    whole = [t.module for t in taps if t is not None and t.tap.side == "output" and t.tap.split is None]
    return whole if len(whole) == len(set(map(id, whole))) == anatomy.dims.num_layers else []


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While open the module computes this; its hooks still run."""
    before, own = module.forward, "forward" in vars(module)
    module.forward = forward
    try:
        yield
    finally:
        if own:
            module.forward = before
        else:
            del module.forward
