"""Intervals and decisions that claims share. The unit of an interval is what a reader would have drawn again: heads, layers, tensors, inputs.

Fewer than 3 units give no interval, and then no verdict: two layers say nothing about the spread over layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from skerry.causes.bootstrap import LEVEL, RESAMPLES, Interval, bootstrap
from skerry.claims.claim import Verdict

MIN_UNITS = 3
FEW_UNITS = 20
"""With fewer units a percentile bootstrap is too narrow, so Student's interval is taken."""
NOTHING = Interval(math.nan, math.nan, math.nan)


def mean_over(values: Sequence[float] | Float[np.ndarray, "unit"], *, seed: int = 0) -> Interval:
    """Mean over units with its 95 % interval: Student's below 20 units, the percentile bootstrap from there on.

    Args:
        values: One number per unit; non-finite ones are left out.
        seed: Of the bootstrap.

    Returns:
        NaN ends with fewer than 3 units; NaN everywhere with none.
    """
    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    if len(x) >= FEW_UNITS:
        return bootstrap(x, seed=seed)
    if len(x) < MIN_UNITS:
        return Interval(float(x.mean()), math.nan, math.nan) if len(x) else NOTHING
    from scipy.stats import t

    mean = float(x.mean())
    half = float(t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def times(values: Sequence[float] | Float[np.ndarray, "unit"]) -> Interval:
    """Geometric mean of ratios over units, with its interval; ratios that are not positive are left out."""
    x = np.asarray(values, np.float64)
    return Interval(*(math.exp(v) if math.isfinite(v) else v for v in mean_over(np.log(x[x > 0]))))


def share(hits: int, num: int) -> Interval:
    """A share with its exact 95 % interval (Clopper-Pearson 1934); NaN of nothing."""
    if num < 1:
        return NOTHING
    from scipy.stats import binomtest

    found = binomtest(hits, num).proportion_ci(confidence_level=LEVEL, method="exact")
    return Interval(hits / num, float(found.low), float(found.high))


def resampled(
    groups: Sequence[Float[np.ndarray, "unit ..."]],
    statistic: Callable[[Sequence[np.ndarray]], float],
    *,
    seed: int = 0,
) -> Interval:
    """A statistic of grouped units with its percentile interval; units are drawn again within their group.

    Args:
        groups: Per group its units, e.g. per layer its heads.
        statistic: Of the groups; NaN draws are left out.
        seed: Of the drawing.
    """
    value = statistic(groups)
    if sum(len(g) for g in groups) < MIN_UNITS or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    draws = [
        statistic([g[rng.integers(0, len(g), len(g))] for g in groups if len(g)]) for _ in range(RESAMPLES)
    ]
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def rank_correlation(x: Float[np.ndarray, "unit"], y: Float[np.ndarray, "unit"]) -> Interval:
    """Spearman's rank correlation over units, with its bootstrap interval; NaN where either is constant."""

    def rho(groups: Sequence[np.ndarray]) -> float:
        a, b = groups[0].T
        if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
            return math.nan
        from scipy.stats import rankdata

        return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])

    return resampled([np.stack([x, y], axis=1)], rho)


def decide(interval: Interval, bar: float) -> Verdict:
    """On which side of the bar the interval lies: above supports, below refutes, across decides nothing."""
    if interval.low > bar:
        return "supported"
    return "refuted" if interval.high < bar else "inconclusive"


def opposite(verdict: Verdict) -> Verdict:
    """For statements that hold below their bar."""
    turned: dict[Verdict, Verdict] = {"supported": "refuted", "refuted": "supported"}
    return turned.get(verdict, verdict)


def last_layers(num_layers: int) -> int:
    """How many blocks count as the last ones: a quarter of them rounded up, at least 2."""
    return max(2, -(-num_layers // 4))
