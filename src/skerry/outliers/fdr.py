"""Is a recurrence more than chance? One binomial test per place, and the share of false ones among all that pass.

    p = P(Binomial(n, p0) >= k)      k of n independent inputs, p0 the share of all (place, input) pairs of the site that hit
    q_i = min over j >= i of p_(j) m / j       over all m tested places (Benjamini & Hochberg 1995)

If the places of a site were exchangeable, a place would hit in an input with the share of places that hit there; a sum of such trials
has a thinner upper tail than Binomial(n, mean share) (Hoeffding 1956), and p0 holds the tested place itself: p errs upwards twice.
Limit: all places hit equally often gives p of about a half; a single place that always hits among d gives p = d^-n.
"""

from __future__ import annotations

import numpy as np

Q = 0.01
"""False discovery rate of every test of a run."""
RECURRENCE = 0.5
"""An outlier is systematic when it recurs in at least this share of the inputs."""


def recurrence_p(hits: np.ndarray, num: np.ndarray, p0: np.ndarray) -> np.ndarray:
    """float64 [place], chance of at least `hits` of `num`; 1 where nothing was tried.

    Args:
        hits: [place], inputs in which the place hit.
        num: [place], inputs tried.
        p0: [place], chance of a hit in one input.
    """
    from scipy.stats import binom

    p = np.ones(len(hits))
    some = (hits > 0) & (num > 0)
    p[some] = binom.sf(hits[some] - 1, num[some], np.clip(p0[some], 0.0, 1.0))
    return p


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """float64 [place], the smallest false discovery rate at which each p value would pass; NaN is not counted as tested."""
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    raw = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q
