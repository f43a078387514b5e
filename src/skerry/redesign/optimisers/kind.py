"""What an optimiser of the register is: a name, its source, its defaults, and what builds it from groups of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

Group = dict[str, Any]


@dataclass(frozen=True)
class Optimiser:
    """One optimiser.

    Attributes:
        name: As in a recipe and on the command line.
        what: One line.
        source: Paper or library.
        lr: Default peak learning rate, for decoders of some millions of parameters.
        weight_decay: Default; lr x weight_decay is 3e-4 in every optimiser, so that all of them shrink the matrices equally fast.
        build: `build(groups, **options)`; the groups come from `Parameters.groups`, matrices first, and each has its `lr` and `weight_decay`.
    """

    name: str
    what: str
    source: str
    lr: float
    weight_decay: float
    build: Callable[..., Optimizer]

    @property
    def options(self) -> dict[str, Any]:
        """Its own options with their defaults."""
        found = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}
