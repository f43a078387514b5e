"""Two models on the same inputs: the difference of each score with its interval over inputs.

    difference = f(S of b) - f(S of a),    both drawn again with the same inputs where both have read the same inputs

Scores of different inputs (other tokenizers, other lengths) are drawn again apart, which gives a wider interval, and the row says so.
An interval of 95 % misses one time in twenty: of twenty rows one is expected to stand apart without a cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from skerry.causes.bootstrap import LEVEL, Interval
from skerry.redesign.battery.score import Place, Score, combine, plain, redraw

Verdict = Literal["better", "worse", "no difference seen", "too few inputs"]


@dataclass(frozen=True)
class Difference:
    """How far model b is from model a in one score.

    Attributes:
        task: The task.
        measure: What of it.
        place: Where on a curve; None for the whole.
        a: Value of the first model.
        b: Value of the second.
        difference: b - a with its interval.
        verdict: How b does beside a.
        is_paired: Whether both have read the same inputs.
    """

    task: str
    measure: str
    place: Place | None
    a: float
    b: float
    difference: Interval
    verdict: Verdict
    is_paired: bool

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        value, low, high = (plain(x) for x in self.difference)
        return {
            "task": self.task,
            "measure": self.measure,
            "place": None if self.place is None else self.place._asdict(),
            "a": plain(self.a),
            "b": plain(self.b),
            "difference": value,
            "low": low,
            "high": high,
            "verdict": self.verdict,
            "is_paired": self.is_paired,
        }


class Both(NamedTuple):
    """The parts of two scores that are drawn again: rows of inputs that count in both, where they are paired."""

    a: np.ndarray
    b: np.ndarray
    is_paired: bool


def compare_scores(a: Sequence[Score], b: Sequence[Score]) -> list[Difference]:
    """The differences of all scores that both have, in the order of the first."""
    other = {score.key: score for score in b}
    return [compare_score(score, other[score.key]) for score in a if score.key in other]


def compare_score(a: Score, b: Score) -> Difference:
    """The difference of one score."""
    both = _both(a, b)
    interval = _interval(a, b, both)
    return Difference(
        a.task, a.measure, a.place, a.value, b.value, interval, _verdict(interval, a), both.is_paired
    )


def _both(a: Score, b: Score) -> Both:
    good_a, good_b = (np.isfinite(s.per_input) for s in (a, b))
    if a.inputs and a.inputs == b.inputs and len(a.parts) == len(b.parts):
        good = good_a & good_b
        return Both(a.parts[good], b.parts[good], is_paired=True)
    return Both(a.parts[good_a], b.parts[good_b], is_paired=False)


def _interval(a: Score, b: Score, both: Both) -> Interval:
    value = _whole(b, both.b) - _whole(a, both.a)
    if min(len(both.a), len(both.b)) < 2:
        return Interval(value, np.nan, np.nan)
    # Another seed for the second model where inputs differ: equal draws would pair what is no pair.
    seed_b = a.seed if both.is_paired else a.seed + 1
    new = combine(b.kind, redraw(len(both.b), seed_b) @ both.b)
    old = combine(a.kind, redraw(len(both.a), a.seed) @ both.a)
    bias = float(np.nanmean(new - old)) - value if a.kind == "ece" else 0.0
    low, high = np.nanquantile(new - old, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - bias
    return Interval(value, float(low), float(high))


def _whole(score: Score, parts: np.ndarray) -> float:
    return float(combine(score.kind, parts.sum(0, keepdims=True))[0])


def _verdict(interval: Interval, a: Score) -> Verdict:
    if not (np.isfinite(interval.low) and np.isfinite(interval.high)):
        return "too few inputs"
    if interval.low <= 0 <= interval.high:
        return "no difference seen"
    return "better" if (interval.low > 0) == (a.better == "higher") else "worse"
