"""The Pareto front: the points that no other point beats, all goals being better when smaller.

    a dominates b:  a_k <= b_k for every goal k, and a_k < b_k for one;      front = points that no point dominates

Pareto 1906; Deb et al. 2002 (NSGA-II), section III. Equal points do not dominate each other: all of them are on the front or none is. A point
without a number for some goal is on no front and beats nobody. Limit: with one goal the front is the least value.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def pareto_front(values: Float[np.ndarray, "point goal"]) -> Bool[np.ndarray, "point"]:
    """Which points are on the front.

    Args:
        values: Smaller is better; NaN where a goal has no number.
    """
    known = ~np.isnan(values).any(axis=1)
    front = known.copy()
    # In order of the first goal (ties by the next) a point can only be dominated by one before it.
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    for i in order:
        if not known[i]:
            continue
        others = values[kept]
        worse = (others <= values[i]).all(axis=1) & (others < values[i]).any(axis=1)
        if bool(worse.any()):
            front[i] = False
        else:
            kept.append(int(i))
    return front
