"""What the norm leaves of tokens that carry an outlier: few channels, and the same direction in every input.

    participation ratio = (sum x^2)^2 / sum x^4      m_i = mean over tokens of input i of x / |x|      constancy = mean over i != j of m_i . m_j

Limit: one channel alone gives a participation ratio of 1, equal channels the width; one and the same direction everywhere a constancy of 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from skerry.causes.spread_numbers import PerInput, Row, constancy_interval, row
from skerry.causes.spread_text import Part


def participation_ratio(x: Float[Tensor, "token channel"]) -> Float[Tensor, "token"]:
    """Number of channels that hold the energy, 1 to the width; NaN for a zero vector."""
    square = x.double().square()
    return square.sum(-1).square() / square.square().sum(-1)


class Means(NamedTuple):
    """Means over the tokens of each input, [input channel], NaN where it has none.

    Attributes:
        unit: Of x / |x|.
        plain: Of x.
    """

    unit: Float[Tensor, "input channel"]
    plain: Float[Tensor, "input channel"]


class Vectors:
    """Mean vectors per input, and participation ratios, of `attn.in`."""

    def __init__(self, num_inputs: int) -> None:
        self.num_inputs = num_inputs
        self.at: dict[int, Means] = {}
        self.other: dict[int, Means] = {}
        self.has_broken = False

    def read(self, layer: int, x: Shaped[Tensor, "token channel"], part: Part, into: PerInput) -> None:
        """Take `attn.in` of one block in one forward."""
        at = part.alive[layer]
        ratios = []
        for kept, mask in ((self.at, at), (self.other, part.others & ~at)):
            rows = mask.flatten().nonzero()[:, 0]
            vectors = x.index_select(0, rows.to(x.device)).cpu().double()
            self.has_broken |= not bool(vectors.isfinite().all())
            known = kept.setdefault(layer, self._empty(x.shape[-1]))
            unit = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
            known.unit[part.inputs] = input_means(unit, mask).float()
            known.plain[part.inputs] = input_means(vectors, mask).float()
            ratios.append(input_means(participation_ratio(vectors)[:, None], mask).numpy())
        into.put("participation ratio", layer, part.inputs.numpy(), *ratios)

    def _empty(self, width: int) -> Means:
        return Means(*(torch.full((self.num_inputs, width), torch.nan) for _ in range(2)))

    def rows(self, *, seed: int) -> list[Row]:
        """Constancy of every block; null where fewer than two inputs were measured."""
        found = []
        for layer, at in self.at.items():
            interval = constancy_interval(at.unit.numpy(), seed=seed)
            other = constancy_interval(self.other[layer].unit.numpy(), seed=seed).value
            num = int(at.unit.isfinite().all(1).sum())
            if np.isfinite(interval.value):
                found.append(row("constancy", layer, None, interval, other, num))
        return found


def input_means(
    x: Float[Tensor, "token channel"], mask: Bool[Tensor, "sample position"]
) -> Float[Tensor, "sample channel"]:
    """Mean per input of the finite vectors; row r of `x` is the r-th token of the mask. NaN for inputs without any."""
    sample = mask.nonzero()[:, 0]
    good = x.isfinite().all(1)
    total = x.new_zeros(len(mask), x.shape[1]).index_add_(0, sample[good], x[good])
    return total / torch.bincount(sample[good], minlength=len(mask)).to(x)[:, None]


class Difference(NamedTuple):
    """How carrying tokens differ from others, for each input as all other inputs have it; NaN where none has.

    Attributes:
        direction: Unit vector from the mean of others to the mean of carrying tokens.
        others: Mean of others.
    """

    direction: Float[Tensor, "input channel"]
    others: Float[Tensor, "input channel"]


def difference_elsewhere(
    at: Float[Tensor, "input channel"], other: Float[Tensor, "input channel"]
) -> Difference:
    """For each input what all inputs but itself say: it explains nothing by knowing itself."""
    carried, others = _mean_elsewhere(at), _mean_elsewhere(other)
    difference = carried - others
    length = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    return Difference((difference / length).to(at), others.to(at))


def natural_directions(other: Float[Tensor, "input channel"], seed: int) -> Float[Tensor, "input channel"]:
    """For each input a unit vector in which the other tokens of one other input, drawn at random, differ from those of all."""
    known = other.isfinite().all(1).nonzero()[:, 0]
    if len(known) < 2:
        return torch.full_like(other, torch.nan)
    away = other[known].double() - other[known].double().mean(0)
    away /= torch.linalg.vector_norm(away, dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(known), (len(other),), generator=generator)
    drawn = torch.where(known[drawn] == torch.arange(len(other)), (drawn + 1) % len(known), drawn)
    return away[drawn].to(other)


def _mean_elsewhere(x: Float[Tensor, "input channel"]) -> Float[Tensor, "input channel"]:
    """Mean over all other inputs that have a vector, float64."""
    known = x.isfinite().all(1, keepdim=True)
    clean = torch.where(known, x, 0.0).double()
    return (clean.sum(0) - clean) / (known.sum() - known.double())
