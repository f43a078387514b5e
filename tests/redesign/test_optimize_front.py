"""The Pareto front against its definition, one pair of points after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.redesign.pareto import pareto_front


def naive_front(values):
    found = []
    for i, a in enumerate(values):
        beaten = any(
            all(x <= y for x, y in zip(b, a, strict=True)) and any(x < y for x, y in zip(b, a, strict=True))
            for j, b in enumerate(values)
            if j != i and not any(np.isnan(b))
        )
        found.append(not beaten and not any(np.isnan(a)))
    return found


# Few different numbers, so that ties and equal points happen.
number = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.5, float("nan"), float("inf")]) | st.floats(-5, 5)
points = st.integers(1, 4).flatmap(
    lambda goals: st.lists(st.lists(number, min_size=goals, max_size=goals), min_size=0, max_size=25).map(
        lambda rows: np.array(rows, dtype=float).reshape(-1, goals)
    )
)


@given(points)
@settings(deadline=None)
def test_the_front_is_what_no_point_beats(values):
    assert pareto_front(values).tolist() == naive_front(values)


@given(points, st.randoms())
@settings(deadline=None, max_examples=30)
def test_the_front_does_not_care_for_order(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    assert (pareto_front(values[order]) == pareto_front(values)[order]).all()


def test_equal_points_are_on_the_front_together_and_one_goal_has_the_least_value():
    assert pareto_front(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]])).tolist() == [True, True, False]
    assert pareto_front(np.array([[3.0], [1.0], [2.0], [1.0]])).tolist() == [False, True, False, True]
