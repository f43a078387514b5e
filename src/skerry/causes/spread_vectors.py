"""What the norm leaves of tokens that carry an outlier: few channels, and the same direction in every input.

    participation ratio = (sum x^2)^2 / sum x^4      m_i = mean over tokens of input i of x / |x|      constancy = mean over i != j of m_i . m_j

Limit: one channel alone gives a participation ratio of 1, equal channels the width; one and the same direction everywhere a constancy of 1.
"""

from __future__ import annotations

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


class Vectors:
    """Mean unit vectors per input, and participation ratios, of `attn.in`."""

    def __init__(self, num_inputs: int) -> None:
        self.num_inputs = num_inputs
        self.at: dict[int, Tensor] = {}
        self.other: dict[int, Tensor] = {}
        self.has_broken = False

    def read(self, layer: int, x: Shaped[Tensor, "token channel"], part: Part, into: PerInput) -> None:
        """Take `attn.in` of one block in one forward."""
        at = part.alive[layer]
        ratios = []
        for kept, mask in ((self.at, at), (self.other, part.others & ~at)):
            rows = mask.flatten().nonzero()[:, 0]
            vectors = x.index_select(0, rows.to(x.device)).cpu().double()
            self.has_broken |= not bool(vectors.isfinite().all())
            known = kept.setdefault(layer, torch.full((self.num_inputs, x.shape[-1]), torch.nan))
            unit = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
            known[part.inputs] = input_means(unit, mask).float()
            ratios.append(input_means(participation_ratio(vectors)[:, None], mask).numpy())
        into.put("participation ratio", layer, part.inputs.numpy(), *ratios)

    def rows(self, *, seed: int) -> list[Row]:
        """Constancy of every block; null where fewer than two inputs were measured."""
        found = []
        for layer, at in self.at.items():
            interval = constancy_interval(at.numpy(), seed=seed)
            other = constancy_interval(self.other[layer].numpy(), seed=seed).value
            num = int(at.isfinite().all(1).sum())
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


def directions_without_own(means: Float[Tensor, "input channel"]) -> Float[Tensor, "input channel"]:
    """For each input the unit vector of the sum over all other inputs: a direction that knows nothing of the input itself.

    NaN where no other input was measured.
    """
    clean = torch.where(means.isfinite().all(1, keepdim=True), means, 0.0).double()
    rest = clean.sum(0) - clean
    return (rest / torch.linalg.vector_norm(rest, dim=1, keepdim=True)).to(means)
