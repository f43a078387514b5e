"""Searches along one number: the threshold of a seam, and whatever else has one number.

    every           t = high - k (high - low) / K,  k = 0 .. K - 1                          as published, from the top downward
    coarse to fine  a few values in equal ratios, then again and again the middle (in ratio) of the wider gap beside the best

Both keep what they tried. The second compares with the best alone, so a loss may be any larger number once it is known to be above the
best: stopping early changes nothing of what is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Loss = Callable[[float], float]


class Tried(NamedTuple):
    """A value and its loss; above the best, perhaps not the exact one."""

    at: float
    loss: float


def every(loss: Loss, *, low: float, high: float, steps: int) -> list[Tried]:
    """The loss at `steps` values in equal distances from `high` down, `low` left out; none where high is not above low.

    Args:
        loss: Of a value.
        low: Where the search ends.
        high: Where it begins.
        steps: Number of values.
    """
    if not high > low:
        return []
    return [Tried(at, loss(at)) for at in (high - k * (high - low) / steps for k in range(steps))]


def coarse_to_fine(loss: Loss, *, low: float, high: float, coarse: int, fine: int) -> list[Tried]:
    """A grid in equal ratios from `high` down to `low`, then the neighbourhood of its best value.

    Args:
        loss: Of a value.
        low: Smallest value, above 0.
        high: Largest value.
        coarse: Values of the grid, ends included.
        fine: Values after that.

    Returns:
        All values tried, in the order of trying.
    """
    if not high > low > 0:
        return [Tried(high, loss(high))] if high > 0 else []
    ratio = (low / high) ** (1 / max(1, coarse - 1))
    tried = [Tried(at, loss(at)) for at in (high * ratio**k for k in range(coarse))]
    for _ in range(fine):
        if (at := _beside_best(tried)) is None:
            break
        tried.append(Tried(at, loss(at)))
    return tried


def _beside_best(tried: list[Tried]) -> float | None:
    """The middle, in ratio, of the wider gap beside the best value; None where both gaps are closed."""
    values = sorted(t.at for t in tried)
    middle = values.index(min(tried, key=lambda t: t.loss).at)
    gaps = [(values[i + 1] / values[i], i) for i in (middle - 1, middle) if i >= 0 and i + 1 < len(values)]
    if not gaps:
        return None
    width, i = max(gaps)
    return math.sqrt(values[i] * values[i + 1]) if width > 1 + 1e-6 else None
