"""Shift and scale of a seam's channels from their ranges and one number.

    shift      z_j = (max_t x_tj + min_t x_tj) / 2                                  the centre of the channel's range
    threshold  s_j = max(1, (max_t x_tj - z_j) / t, (min_t x_tj - z_j) / -t)        what reaches beyond t is brought to t

Wei et al. 2023 (arXiv 2304.09145), equations 3 and 5. Added here: channels that stay below t may be enlarged too, and the two sides may
have thresholds of their own,

    s_j = (r_j / t)^p  where r_j < t,   r_j = max(high_j, -low_j / ratio),   t on the upper side, ratio * t on the lower

with p = 0 as published and p = 1 every channel filling the range. A common factor of all s changes nothing, since a grid follows its
range; with p = 1 the threshold therefore has no effect. `balance` is SmoothQuant's scale (Xiao et al. 2023, equation 4) of the same reach.

Limits: t at or above the largest reach gives s = 1 for p = 0; a channel that is always z gets s = 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.seams import Seam

# Reaches below this share of the largest count as this share: a channel of almost zeros would otherwise get a scale of almost zero, whose
# inverse overflows the norm's gain in half precision.
SMALLEST_SHARE = 1e-4


class Ranges(NamedTuple):
    """Smallest and largest value of every channel, in the units of the activation."""

    low: Float[Tensor, "channel"]
    high: Float[Tensor, "channel"]

    def pooled(self, seam: Seam) -> Ranges:
        """The ranges of a seam's independent channels."""
        return Ranges(seam.pool(self.low, "amin"), seam.pool(self.high, "amax"))

    def less(self, shift: Float[Tensor, "channel"] | None) -> Ranges:
        """The ranges of x - shift."""
        return self if shift is None else Ranges(self.low - shift, self.high - shift)

    def over(self, scale: Float[Tensor, "channel"] | None) -> Ranges:
        """The ranges of x / scale."""
        return self if scale is None else Ranges(self.low / scale, self.high / scale)

    @property
    def span(self) -> float:
        """Length of the range of the whole tensor."""
        return float(self.high.max() - self.low.min())

    def joined(self, other: Ranges) -> Ranges:
        """The ranges over both sets of tokens."""
        return Ranges(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


def centre(ranges: Ranges) -> Float[Tensor, "channel"]:
    """The middle of every channel's range, in the units of the activation."""
    return (ranges.low + ranges.high) / 2


def reach(ranges: Ranges, *, ratio: float = 1.0) -> Float[Tensor, "channel"]:
    """How far every channel goes from 0, the lower side divided by `ratio`; never below 1e-4 of the farthest.

    Args:
        ranges: Of the shifted channels.
        ratio: Lower threshold over upper threshold.
    """
    far = torch.maximum(ranges.high, -ranges.low / ratio).clamp_min(0.0)
    return far.clamp_min(float(far.max()) * SMALLEST_SHARE)


def scale_of(
    ranges: Ranges, threshold: float, *, below: float = 0.0, ratio: float = 1.0
) -> Float[Tensor, "channel"]:
    """The scale that brings every channel that reaches beyond the threshold to it.

    Args:
        ranges: Of the shifted channels.
        threshold: t, in the units of the activation; above 0.
        below: p, 0 to 1: how much channels that stay below are enlarged.
        ratio: Lower threshold over upper threshold.

    Returns:
        Positive; 1 in every channel where nothing moves.
    """
    far = reach(ranges, ratio=ratio)
    if not bool(far.max() > 0):
        return torch.ones_like(far)
    share = far / threshold
    return torch.where(share > 1, share, share.pow(below))


def balance(ranges: Ranges, weights: Float[Tensor, "channel"], alpha: float) -> Float[Tensor, "channel"]:
    """SmoothQuant's scale, s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), with a geometric mean of 1.

    Args:
        ranges: Of the shifted channels.
        weights: Largest |W| of every channel over all readers.
        alpha: How much of the range moves into the weights, 0 to 1.
    """
    far = reach(ranges)
    heavy = weights.clamp_min(float(weights.max()) * SMALLEST_SHARE)
    if not bool(far.max() > 0) or not bool(heavy.max() > 0):
        return torch.ones_like(far)
    log = alpha * far.log() - (1 - alpha) * heavy.log()
    return (log - log.mean()).exp()
