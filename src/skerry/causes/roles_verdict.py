"""Which role sinks have, decided by rules fixed in advance.

D(arm) is the damage of an arm of `roles_parts.ARMS` (the kl, or the distance without a head), `N` the arm `neither`, and

    worth(arm) = 1 - D(arm) / D(N):   0 where nothing of the sinks is left, 1 for the untouched model

Sinks can give three things: M, a constant (the mean of the bias); V, the dependence of the bias on context, which needs M; S, the
scaling. The arms are all the ways of having some of them: {} = neither, {M} = both frozen, {M, V} = context-aware bias, {S} = implicit
scaling, {S, M} = fixed bias, all = untouched. The share of each is its gain, averaged over the three orders in which they can be added
(the Shapley value of this game); the three shares add up to 1:

    M = (2 worth(both frozen) + worth(fixed bias) - worth(implicit scaling)) / 3
    V = ((worth(context-aware bias) - worth(both frozen)) + 2 (1 - worth(fixed bias))) / 3
    S = ((1 - worth(context-aware bias)) + (worth(fixed bias) - worth(both frozen)) + worth(implicit scaling)) / 3

A share is needed when the lower end of its interval is above 0.2, not needed when the upper end is below, else open. The interval is a
bootstrap over inputs that draws all arms of an input together. The first line that fits decides:

    less than 5 inputs                                             undecided
    upper end of every D < 1e-4 (nats, or variances)               no role
    D(N) < half of the largest D (bias and scaling cancel)         undecided
    S not needed, V not needed                                     fixed bias            strength M
    S not needed, V needed                                         context-aware bias    strength M + V
    S needed, M + V not needed                                     implicit scaling      strength S
    S needed, M + V needed                                         mixed                 strength: the larger of S and M + V
    any other                                                      undecided

Strength is cut to 0..1. Hypotheses: Sun et al. 2024 (fixed bias), An et al. 2025, arXiv 2502.06415 (context-aware bias; implicit scaling).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from skerry.causes.bootstrap import LEVEL, RESAMPLES, Interval
from skerry.causes.roles_parts import ARMS

NEEDED = 0.2
NO_DAMAGE = 1e-4
MIN_INPUTS = 5
SHARES = ("fixed bias", "context dependence", "scaling")
_ORDER = tuple(ARMS)


def resampled(
    sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> list[Interval]:
    """Statistics of sums over inputs, with percentile intervals that resample inputs.

    Args:
        sums: [input, number]: what each input adds.
        statistic: [..., number] to [..., result].
        seed: Of the resampling.

    Returns:
        One interval per result; NaN ends with a single input.
    """
    inputs = len(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(sums.sum(0))
        if inputs < 2:
            return [Interval(float(v), np.nan, np.nan) for v in value]
        drawn = np.random.default_rng(seed).multinomial(inputs, np.full(inputs, 1 / inputs), size=RESAMPLES)
        results = statistic(drawn @ sums)
    return [
        Interval(float(v), *_ends(column)) if np.isfinite(v) else Interval(np.nan, np.nan, np.nan)
        for v, column in zip(value, results.T, strict=True)
    ]


def _ends(column: np.ndarray) -> tuple[float, float]:
    good = column[np.isfinite(column)]
    if not len(good):
        return np.nan, np.nan
    low, high = np.quantile(good, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class Verdict(NamedTuple):
    """The role of one head, layer or model.

    Attributes:
        verdict: One of the words of the table above.
        strength: Its share of what the sinks do; NaN where no role was told.
        shares: Shares of M, V and S, named as in `SHARES`; NaN without damage.
        why: The comparison that decided.
    """

    verdict: str
    strength: Interval
    shares: dict[str, Interval]
    why: str


def role_shares(damage: np.ndarray) -> np.ndarray:
    """Damages [..., arm in the order of `ARMS`] to the shares [..., (M, V, S)]."""
    fixed, context, scaling, both = (
        1 - damage[..., _ORDER.index(a)] / damage[..., _ORDER.index("neither")] for a in _ORDER[:-1]
    )
    constant = (2 * both + fixed - scaling) / 3
    varying = (context - both + 2 * (1 - fixed)) / 3
    scale = (1 - context + fixed - both + scaling) / 3
    return np.stack([constant, varying, scale], axis=-1)


def decide(damages: Mapping[str, np.ndarray], *, seed: int = 0) -> Verdict:
    """The verdict from the damage of each arm to each input.

    Args:
        damages: Arm to damages [input], paired; inputs with a number that is not finite are left out.
        seed: Of the resampling.
    """
    table = np.stack([np.asarray(damages[arm], np.float64) for arm in _ORDER], axis=-1)
    table = table[np.isfinite(table).all(-1)]
    nothing = Interval(np.nan, np.nan, np.nan)
    if len(table) < MIN_INPUTS:
        shares = dict.fromkeys(SHARES, nothing)
        return Verdict("undecided", nothing, shares, f"{len(table)} inputs; at least {MIN_INPUTS} are needed")
    means = resampled(table, lambda sums: sums / len(table), seed=seed)
    found = resampled(table, _shares_and_sums, seed=seed)
    shares = dict(zip(SHARES, found[:3], strict=True))
    constant, varying, scale, bias = found
    top = max(means, key=lambda d: d.value)
    if max(d.high for d in means) < NO_DAMAGE:
        why = f"no arm costs {NO_DAMAGE:g}: the largest is {_words(top)}"
        return Verdict("no role", nothing, shares, why)
    neither = means[_ORDER.index("neither")]
    if not neither.value >= top.value / 2:
        arm = _ORDER[means.index(top)]
        why = f"bias and scaling cancel each other: without both the damage is {neither.value:.2g}, in arm {arm} {top.value:.2g}"
        return Verdict("undecided", nothing, shares, why)
    role, strength = _rule(constant, varying, scale, bias)
    why = f"of what sinks do, scaling is {_words(scale)}, the bias {_words(bias)}, its dependence on context {_words(varying)}"
    return Verdict(role, Interval(*np.clip(strength, 0.0, 1.0).tolist()), shares, why)


def _shares_and_sums(damage: np.ndarray) -> np.ndarray:
    shares = role_shares(damage)
    return np.concatenate([shares, shares[..., :1] + shares[..., 1:2]], axis=-1)


def _rule(constant: Interval, varying: Interval, scale: Interval, bias: Interval) -> tuple[str, Interval]:
    if scale.high < NEEDED and varying.high < NEEDED:
        return "fixed bias", constant
    if scale.high < NEEDED and varying.low > NEEDED:
        return "context-aware bias", bias
    if scale.low > NEEDED and bias.high < NEEDED:
        return "implicit scaling", scale
    if scale.low > NEEDED and bias.low > NEEDED:
        return "mixed", max(scale, bias, key=lambda share: share.value)
    return "undecided", Interval(np.nan, np.nan, np.nan)


def _words(x: Interval) -> str:
    return f"{x.value:.2g} ({x.low:.2g} to {x.high:.2g})"
