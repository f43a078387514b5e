"""One thing that is done to the model to see what follows: an arm, or one random draw of its matched control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from skerry.anatomy.change import Edit, change
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.carrier import Carrier
from skerry.causes.effect_case import Case
from skerry.causes.interventions import Intervention, first_layer_of
from skerry.causes.rerun import Rerun
from skerry.causes.sinks import Sinks

Make = Callable[[Case, Rerun], Sequence[Intervention]]


@dataclass(frozen=True)
class Arm:
    """What is done.

    Attributes:
        group: birth, super weight, dose, path, start, sink or removal.
        name: In a few words.
        null: Arms are compared with the controls of the same group and null.
        make: The interventions for one case; the case's kept run is there for changes that need what another run computes.
        first: First block whose output may change.
        layer: Block where it is done; None: in many.
        site: Part where it is done.
        dose: Factor on the outlier.
        draw: Number of the random draw of a control; None for what is no control.
        unread: Outcomes that say nothing under this arm.
    """

    group: str
    name: str
    null: str
    make: Make
    first: int
    layer: int | None = None
    site: str | None = None
    dose: float | None = None
    draw: int | None = None
    unread: frozenset[str] = frozenset()

    @property
    def is_control(self) -> bool:
        """Whether it makes the null."""
        return self.draw is not None


@dataclass(frozen=True)
class Chain:
    """What arms are about.

    Attributes:
        anatomy: The model.
        cases: The inputs.
        followed: All outliers, those that sit on few tokens first.
        born: Those of the sort of the first that are born where it is.
        sinks: Which keys are sinks.
        seed: Of all random draws.
        draws: Draws of each control.
    """

    anatomy: Anatomy
    cases: Sequence[Case]
    followed: Sequence[Carrier]
    born: Sequence[Carrier]
    sinks: Sinks
    seed: int
    draws: int

    @property
    def birth(self) -> int:
        """Block of the birth; -1 for the embedding."""
        layer = self.born[0].birth_layer
        return -1 if layer is None else layer

    def random(self, draw: int) -> torch.Generator:
        """What a draw of a control is made from."""
        return torch.Generator().manual_seed(self.seed * 7919 + draw)


def edits(anatomy: Anatomy, changes: Mapping[Site, Edit], what: str) -> list[Intervention]:
    """Changes of several activations as one intervention; none at all where there is nothing to change."""
    if not changes:
        return []
    first = min(first_layer_of(anatomy, site) for site in changes)
    return [Intervention(lambda: change(anatomy, changes), first_layer=first, what=what)]
