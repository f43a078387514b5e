"""Numbers per input put together to rows of the table `spread`: a mean, its interval over inputs, and the same at other tokens.

All intervals are percentile bootstraps over inputs (Efron 1979), as in `bootstrap`; a statistic of pairs of inputs or a ratio of sums
is computed anew in every resample.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from skerry.causes.bootstrap import LEVEL, RESAMPLES, Interval

Row = dict[str, Any]
_NOTHING = Interval(np.nan, np.nan, np.nan)


@lru_cache(maxsize=4)
def _drawn(num: int, seed: int) -> np.ndarray:
    """float64 [resample, input]: how often each input is drawn."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num, np.full(num, 1 / num), size=RESAMPLES).astype(np.float64)


def _between(value: float, resampled: np.ndarray) -> Interval:
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def mean_interval(x: np.ndarray, *, seed: int) -> Interval:
    """Mean over inputs of the finite values [input]; the same numbers as `bootstrap`, whose draws are kept for the next series."""
    x = x[np.isfinite(x)]
    if not len(x):
        return _NOTHING
    mean = float(x.mean())
    return _between(mean, _drawn(len(x), seed) @ x / len(x) if len(x) > 1 else np.zeros(0))


def ratio_interval(top: np.ndarray, bottom: np.ndarray, *, seed: int) -> Interval:
    """Sum over inputs of `top` / sum of `bottom`, both [input]; NaN where the sum below is not above 0, or of a single input."""
    good = np.isfinite(top) & np.isfinite(bottom)
    top, bottom = top[good], bottom[good]
    if len(top) < 2 or not bottom.sum() > 0:
        return _NOTHING
    drawn = _drawn(len(top), seed)
    below = drawn @ bottom
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = np.where(below > 0, drawn @ top / below, np.nan)
    return _between(float(top.sum() / bottom.sum()), resampled)


def constancy_interval(means: np.ndarray, *, seed: int) -> Interval:
    """Mean over pairs of different inputs of m_i . m_j, with m the mean unit vector of an input, [input channel]; NaN below two.

    (|sum m|^2 - sum |m|^2) / (n (n - 1)). A resample that draws an input twice does not pair it with itself.
    """
    m = means[np.isfinite(means).all(1)].astype(np.float64)
    if len(m) < 2:
        return _NOTHING
    products = m @ m.T
    np.fill_diagonal(products, 0.0)
    drawn = _drawn(len(m), seed)
    pairs = len(m) ** 2 - np.square(drawn).sum(1)
    total = ((drawn @ products) * drawn).sum(1)
    resampled = np.divide(total, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return _between(float(products.sum() / (len(m) * (len(m) - 1))), resampled)


class Series(NamedTuple):
    """One measure in one block: float64 [input, 1 + head], the whole block first; NaN where it was not measured."""

    value: np.ndarray
    other: np.ndarray


class PerInput:
    """Measures that are means over inputs, filled part by part."""

    def __init__(self, num_inputs: int) -> None:
        self.num_inputs = num_inputs
        self.series: dict[tuple[int, str], Series] = {}

    def put(
        self, measure: str, layer: int, inputs: np.ndarray, value: np.ndarray, other: np.ndarray | None = None
    ) -> None:
        """Take the numbers of some inputs.

        Args:
            measure: Its name.
            layer: Block.
            inputs: int64 [input], which.
            value: [input, 1 + head] at tokens that carry an outlier.
            other: The same at other tokens.
        """
        shape = (self.num_inputs, value.shape[1])
        into = self.series.setdefault(
            (layer, measure), Series(np.full(shape, np.nan), np.full(shape, np.nan))
        )
        into.value[inputs] = value
        if other is not None:
            into.other[inputs] = other

    def rows(self, *, seed: int) -> list[Row]:
        """Rows of the table, those with a number."""
        found = []
        for (layer, measure), s in self.series.items():
            for column in range(s.value.shape[1]):
                interval = mean_interval(s.value[:, column], seed=seed)
                other = mean_interval(s.other[:, column], seed=seed).value
                num = int(np.isfinite(s.value[:, column]).sum())
                found.append(row(measure, layer, column - 1 if column else None, interval, other, num))
        return [r for r in found if r["value"] is not None]


def row(
    measure: str, layer: int, head: int | None, interval: Interval, other: float, num_samples: int
) -> Row:
    """A row of the table; what is not finite is null."""
    return {
        "layer": layer,
        "head": head,
        "measure": measure,
        "value": _plain(interval.value),
        "other": _plain(other),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
        "num_samples": num_samples,
    }


def _plain(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
