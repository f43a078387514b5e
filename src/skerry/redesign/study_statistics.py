"""From the arms to what is told of each variant: a value with its interval, and what it gives beside the baseline of the same seeds and windows.

    loss              mean over seeds s and windows w of l_sw; interval: seeds and windows drawn again with replacement, each on its own
                      (the pigeonhole bootstrap of Owen 2007: seeds and windows are crossed, all seeds read the same windows)
    number per seed   mean over seeds and Student's interval; of sizes and ratios on a logarithmic scale, so the mean is geometric
    beside baseline   the same of l_sw - l'_sw, of x_s - x'_s, of x_s / x'_s

With one seed a loss has an interval over windows alone, which says how sure it is that this decoder is better, not that its variant is; a
number per seed then has none. Limit: the baseline beside itself is 0 (ratio 1) with an interval of no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from skerry.causes.bootstrap import LEVEL, RESAMPLES, Interval


def crossed(
    values: Float[np.ndarray, "seed window"],
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean with its percentile interval; seeds and windows are drawn again, independently of each other.

    Args:
        values: Losses, or differences of losses.
        seed: Of the resampling.
        level: Coverage.
        resamples: Number of resamples.

    Returns:
        With one seed the interval is over windows alone; with one of each it is NaN.
    """
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if x.size < 2:
        return Interval(mean, math.nan, math.nan)
    draw = np.random.default_rng(seed)
    rows, columns = (
        draw.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in (x.shape[0], x.shape[1])
    )
    means = np.einsum("rs,sw,rw->r", rows, x, columns)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def over_seeds(values: Sequence[float], *, logarithmic: bool = False, level: float = LEVEL) -> Interval:
    """Mean over seeds with Student's interval; on a logarithmic scale the geometric mean.

    Args:
        values: One number per seed.
        logarithmic: The numbers are positive and their ratios matter.
        level: Coverage.

    Returns:
        NaN everywhere without a number; an interval of NaN with one.
    """
    from scipy.stats import t

    x = np.asarray(list(values), np.float64)
    if logarithmic:
        x = np.log(x[x > 0]) if bool((x > 0).all()) else np.empty(0)
    if not len(x):
        return Interval(math.nan, math.nan, math.nan)
    mean = float(x.mean())
    if len(x) == 1:
        found = Interval(mean, math.nan, math.nan)
    else:
        half = float(t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
        found = Interval(mean, mean - half, mean + half)
    return Interval(*(math.exp(v) for v in found)) if logarithmic else found


class Reached(NamedTuple):
    """When a curve first came down to a level.

    Attributes:
        step: Between two points, on the line through them; None when it never did.
        lowest: Smallest loss of the curve.
    """

    step: float | None
    lowest: float


def steps_to(steps: Sequence[int], losses: Sequence[float], level: float) -> Reached:
    """The first step at which a curve of held-out loss is at or below a level.

    Args:
        steps: Ascending.
        losses: At these steps.
        level: The baseline's final loss.
    """
    lowest = min(losses)
    for i, loss in enumerate(losses):
        if loss > level:
            continue
        if i == 0:
            return Reached(float(steps[0]), lowest)
        before = losses[i - 1]
        share = (before - level) / (before - loss)
        return Reached(steps[i - 1] + share * (steps[i] - steps[i - 1]), lowest)
    return Reached(None, lowest)


def mean_over_run(steps: Sequence[int], losses: Sequence[float]) -> float:
    """Mean of a curve over its steps (trapezoids), from its first point to its last: learning over the whole run and not its first steps."""
    if len(steps) < 2:
        return float(losses[0])
    return float(np.trapezoid(losses, steps) / (steps[-1] - steps[0]))
