"""A score is a function of sums over inputs: that gives its value, its interval and its difference between two models alike.

    S = sum over inputs i of parts_i,    value = f(S),    interval: percentiles of f over inputs drawn again with replacement

Inputs are the unit: tokens of one input are not independent. Two models that have read the same inputs are drawn again together, so what
makes an input hard for both drops out of their difference. The kinds of f:

    mean   S_0 / S_1                                  parts (weight * value, weight)
    share  the same of values in [0, 1]; where every input gives the very same 0 or 1 the bootstrap has nothing to draw, and the exact
           interval of a share stands in (Clopper and Pearson 1934): n of n hits leave [(a/2)^(1/n), 1], a = 5 %
    ece    sum over bins b of |hits_b - confidence_b| / number of predictions, see `calibration`; its bootstrap is biased upwards (noise
           has no sign there), so the interval is moved back by that bias

Limit: f of the kind mean with equal weights is `skerry.causes.bootstrap.bootstrap`, number for number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from skerry.causes.bootstrap import LEVEL, RESAMPLES, Interval

Kind = Literal["mean", "share", "ece"]
Better = Literal["higher", "lower"]
# Bins of an `ece` have three sums each: hits, confidence, variance of the hits of a calibrated model.
PER_BIN = 3
# A value this near to the chance level is the chance level: rounding of a sum of float32 logarithms.
_SAME = 1e-6


class Place(NamedTuple):
    """Where on a curve a score was taken.

    Attributes:
        along: What the curve goes along, with its unit.
        first: Smallest value there.
        last: Largest value there.
    """

    along: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True, eq=False)
class Score:
    """One measured number with what is needed to compare it with another model's.

    Attributes:
        task: The task.
        measure: What of it, e.g. `accuracy`.
        what: The same in words, with its unit.
        parts: What is summed over inputs.
        kind: What is made of the sums.
        better: Which direction is the better one.
        chance: What a model gives that cannot do the task; None where there is no such number.
        chance_is: What gives that number, in words.
        place: Where on a curve; None for the whole.
        inputs: Digest of the inputs: equal digests can be compared in pairs.
        seed: Of the resampling.
    """

    task: str
    measure: str
    what: str
    parts: Float[np.ndarray, "input part"]
    kind: Kind = "mean"
    better: Better = "higher"
    chance: float | None = None
    chance_is: str = "chance"
    place: Place | None = None
    inputs: str = ""
    seed: int = 0

    @property
    def key(self) -> tuple[str, str, Place | None]:
        """What the same number of another model has in common with this one."""
        return self.task, self.measure, self.place

    @property
    def value(self) -> float:
        """Over all inputs; NaN of nothing."""
        return float(combine(self.kind, self.parts.sum(0, keepdims=True))[0])

    @property
    def per_input(self) -> Float[np.ndarray, "input"]:
        """The same of each input alone; NaN for an input in which nothing counts."""
        return combine(self.kind, self.parts)

    @cached_property
    def interval(self) -> Interval:
        """The value with its 95 % interval over inputs; NaN ends with fewer than two inputs."""
        value, counted = self.value, self._counted()
        if len(counted) < 2:
            return Interval(value, np.nan, np.nan)
        own = combine(self.kind, counted)
        if self.kind == "share" and own[0] in (0.0, 1.0) and bool((own == own[0]).all()):
            edge = ((1 - LEVEL) / 2) ** (1 / len(own))
            return Interval(value, edge, 1.0) if own[0] else Interval(value, 0.0, 1.0 - edge)
        drawn = combine(self.kind, redraw(len(counted), self.seed) @ counted)
        bias = float(np.nanmean(drawn)) - value if self.kind == "ece" else 0.0
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - bias
        return Interval(value, float(max(low, 0.0) if self.kind == "ece" else low), float(high))

    @property
    def standing(self) -> Literal["better", "at", "worse"] | None:
        """Where the interval lies as seen from the chance level; None where either is unknown."""
        value, low, high = self.interval
        if self.chance is None or not (np.isfinite(low) and np.isfinite(high)):
            return None
        near = _SAME * max(1.0, abs(self.chance))
        if low - near <= self.chance <= high + near:
            return "at"
        return "better" if (value > self.chance) == (self.better == "higher") else "worse"

    def _counted(self) -> Float[np.ndarray, "input part"]:
        return self.parts[np.isfinite(combine(self.kind, self.parts))]

    def document(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        value, low, high = self.interval
        return {
            "task": self.task,
            "measure": self.measure,
            "what": self.what,
            "kind": self.kind,
            "place": None if self.place is None else self.place._asdict(),
            "value": plain(value),
            "low": plain(low),
            "high": plain(high),
            "better": self.better,
            "chance": plain(self.chance),
            "chance_is": self.chance_is,
            "standing": self.standing,
            "inputs": self.inputs,
            "seed": self.seed,
            "per_input": [plain(x) for x in self.per_input.tolist()],
            "parts": self.parts.tolist(),
        }

    @classmethod
    def from_document(cls, d: Mapping[str, Any]) -> Score:
        """The score that wrote a document."""
        place = None if d["place"] is None else Place(**d["place"])
        words = {k: d[k] for k in ("task", "measure", "what", "better", "chance_is", "inputs", "seed")}
        kind = cast(Kind, d["kind"])
        return cls(
            parts=np.asarray(d["parts"], np.float64), kind=kind, place=place, chance=d["chance"], **words
        )

    def __repr__(self) -> str:
        value, low, high = self.interval
        where = f" at {self.place}" if self.place else ""
        return f"<Score {self.task}.{self.measure}{where}: {value:.4g} [{low:.4g}, {high:.4g}]; .per_input>"


def mean_parts(
    values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None
) -> Float[np.ndarray, "input part"]:
    """Parts of a mean or a share: one value per input and, perhaps, its weight; a value of NaN does not count."""
    x = np.asarray(values, np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)
    good = np.isfinite(x) & (w > 0)
    return np.stack([np.where(good, w * np.where(good, x, 0.0), 0.0), np.where(good, w, 0.0)], axis=1)


def combine(kind: Kind, sums: Float[np.ndarray, "row part"]) -> Float[np.ndarray, "row"]:
    """Value of each row of sums; NaN where nothing was counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "ece":
            bins = sums[:, :-1].reshape(len(sums), -1, PER_BIN)
            return np.asarray(np.abs(bins[..., 0] - bins[..., 1]).sum(1) / sums[:, -1])
        return np.asarray(sums[:, 0] / sums[:, 1])


@lru_cache(maxsize=8)
def redraw(num: int, seed: int) -> Float[np.ndarray, "draw input"]:
    """How often each input is in each draw; the same for equal arguments, which is what pairs two models."""
    drawn = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
    return drawn.astype(np.float64)


def plain(x: float | None) -> float | None:
    """A number for JSON, which knows no NaN."""
    return None if x is None or not np.isfinite(x) else float(x)
