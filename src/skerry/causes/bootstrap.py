"""Intervals over independent inputs, and chances against controls. Inputs are the unit: tokens of one input are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000


class Interval(NamedTuple):
    """A mean and its percentile bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Weighted mean over inputs with its percentile interval (Efron 1979).

    Args:
        values: One number per input, e.g. a paired difference; non-finite ones are left out.
        weights: Weight of each input, e.g. its number of tokens: resampled with it, so the mean is a ratio of sums. Equal by default.
        seed: Of the resampling.
        level: Coverage.
        resamples: Number of resamples.

    Returns:
        NaN everywhere without a finite value; an interval of NaN with a single one, which says nothing about other inputs.
    """
    x = np.asarray(values, np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)
    good = np.isfinite(x) & (w > 0)
    x, w = x[good], w[good]
    if not len(x):
        return Interval(np.nan, np.nan, np.nan)
    mean = float((w * x).sum() / w.sum())
    if len(x) == 1:
        return Interval(mean, np.nan, np.nan)
    drawn = np.random.default_rng(seed).multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples)
    total = drawn @ w
    means = (drawn @ (w * x))[total > 0] / total[total > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def chance(effect: float, controls: Sequence[float]) -> float | None:
    """Chance of an effect at least so large among matched controls, (1 + #{|c| >= |e|}) / (1 + #c); None without controls."""
    sizes = np.abs([c for c in controls if np.isfinite(c)])
    if not len(sizes) or not np.isfinite(effect):
        return None
    return float((1 + (sizes >= abs(effect)).sum()) / (1 + len(sizes)))
