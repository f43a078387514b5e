"""Searches along one number: the threshold of a seam, and whatever else has one number.

    every           t = high - k (high - low) / K,  k = 0 .. K - 1                          as published, from the top downward
    coarse to fine  a few values in equal ratios, then again and again the middle (in ratio) of the wider gap beside the best

Both keep what they tried. A loss is told the best value so far: a sum of squares may stop adding as soon as it is above it, and what it
returns then is only known to be worse. The second search compares with the best alone, so stopping early cannot change what it finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

# loss(value, stop): the loss at a value, or any number above `stop` once it is known to be above.
Loss = Callable[[float, float], float]


class Tried(NamedTuple):
    """A value and its loss; a loss above the best may be a lower bound."""

    at: float
    loss: float


def every(loss: Loss, *, low: float, high: float, steps: int) -> list[Tried]:
    """The loss at `steps` values in equal distances from `high` down, `low` left out; none where high is not above low.

    Args:
        loss: Of a value; it is asked for the full sum.
        low: Where the search ends.
        high: Where it begins.
        steps: Number of values.
    """
    if not high > low:
        return []
    return [Tried(at, loss(at, math.inf)) for at in (high - k * (high - low) / steps for k in range(steps))]


def coarse_to_fine(
    loss: Loss, *, low: float, high: float, coarse: int, fine: int, best: float = math.inf
) -> list[Tried]:
    """A grid in equal ratios from `high` down to `low`, then the neighbourhood of its best value.

    Args:
        loss: Of a value.
        low: Smallest value, above 0.
        high: Largest value.
        coarse: Values of the grid, ends included.
        fine: Values after that.
        best: A loss that is known already, for stopping early.

    Returns:
        All values tried, in the order of trying.
    """
    if not high > low > 0:
        return [Tried(high, loss(high, best))] if high > 0 else []
    ratio = (low / high) ** (1 / max(1, coarse - 1))
    tried: list[Tried] = []

    def ask(at: float) -> None:
        nonlocal best
        tried.append(Tried(at, loss(at, best)))
        best = min(best, tried[-1].loss)

    for k in range(coarse):
        ask(high * ratio**k)
    for _ in range(fine):
        at = _beside_best(tried)
        if at is None:
            break
        ask(at)
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
