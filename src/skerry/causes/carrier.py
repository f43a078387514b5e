"""An outlier of the residual stream as something that lives: a channel, the tokens that carry it, and the blocks of its life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

CarrierKind = Literal["massive activation", "outlier channel"]


@dataclass(frozen=True)
class Carrier:
    """One outlier of the residual stream.

    Attributes:
        number: Its number in the run.
        kind: A few tokens (massive activation) or most of them (outlier channel).
        channel: Channel of the residual stream.
        sign: 1 or -1: the sign it has in most inputs at its peak.
        birth_layer: Block after which it is first there; None when the embedding already has it.
        peak_layer: Block after which it is largest.
        exit_layer: Block that takes it away; None when it stays to the end.
        peak: Mean over its tokens of the signed value at `resid.out` of the peak block.
        ratio: |peak| / median |x| there.
        threshold: |value| there, with the sign of the carrier, from which a token carries it.
    """

    number: int
    kind: CarrierKind
    channel: int
    sign: int
    birth_layer: int | None
    peak_layer: int
    exit_layer: int | None
    peak: float
    ratio: float
    threshold: float


@dataclass(frozen=True)
class Places:
    """Which tokens carry which outlier, batch by batch.

    Attributes:
        carried: Per batch of the feed: carrier number to flat tokens (b * T + t), ascending.
        others: Per batch: flat tokens drawn at random for comparison (never padding), ascending. They carry nothing, or, where outlier
            channels leave too few such tokens, only what most tokens carry.
    """

    carried: Sequence[Mapping[int, Int[Tensor, "_"]]]
    others: Sequence[Int[Tensor, "_"]]

    def any_of(self, batch: int, numbers: Sequence[int]) -> Int[Tensor, "place"]:
        """Flat tokens of one batch that carry at least one of these outliers, ascending."""
        found = [self.carried[batch][n] for n in numbers if n in self.carried[batch]]
        return torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class SuperWeight:
    """One entry of a down projection that carries much of an outlier's growth.

    Attributes:
        carrier: Number of the outlier.
        layer: Block.
        expert: Expert, None in a dense feed-forward.
        row: Residual channel.
        column: Neuron.
        share: Share of the growth that goes through it.
    """

    carrier: int
    layer: int
    expert: int | None
    row: int
    column: int
    share: float
