"""Shares of a change: a contribution's sum over tokens, divided by the sum of the change, with an interval over inputs.

The interval is the percentile bootstrap of that ratio of sums (Efron 1979): inputs are drawn with replacement, each with all its tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from skerry.causes.bootstrap import LEVEL, RESAMPLES


class Share(NamedTuple):
    """A mean contribution, its share of the change, and the interval of the share; None where there is none."""

    value: float
    share: float
    low: float | None
    high: float | None


class Shares:
    """Shares of one change.

    Args:
        change: What is shared, token by token.
        sample: Input of each token.
        seed: Of the resampling.

    Attributes:
        total: Mean change.
        is_stable: Whether resampled changes keep their sign: else a share of them has no interval.
    """

    def __init__(self, change: Float[Tensor, "row"], sample: Int[Tensor, "row"], *, seed: int = 0) -> None:
        self.inputs, self.place = np.unique(sample.cpu().numpy(), return_inverse=True)
        num = len(self.inputs)
        self.draws = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
        self.total = float(change.mean())
        self.sum = float(change.sum())
        self.drawn = self.draws @ self._sums(change)
        self.quantiles = (1 - LEVEL) / 2, (1 + LEVEL) / 2
        low, high = np.quantile(self.drawn, self.quantiles)
        self.is_stable = bool(low * high > 0)

    def of(self, values: Float[Tensor, "row"]) -> Share:
        """The share of a contribution."""
        value, share = float(values.mean()), float(values.sum()) / self.sum
        if len(self.inputs) < 2 or not self.is_stable:
            return Share(value, share, None, None)
        kept = self.drawn * self.sum > 0
        ratios = (self.draws @ self._sums(values))[kept] / self.drawn[kept]
        low, high = np.quantile(ratios, self.quantiles)
        return Share(value, share, float(low), float(high))

    def _sums(self, values: Tensor) -> np.ndarray:
        """Sum of each input."""
        return np.bincount(self.place, weights=values.double().cpu().numpy(), minlength=len(self.inputs))
