"""Where the range of a grid ends: at the extremes of the values, or before them.

    minmax         [min x, max x]
    percentile:p   the central p percent: the (1 - p/100)/2 and (1 + p/100)/2 quantiles
    mse            [f min x, f max x] with f in {1.00, 0.99, ..., 0.20} that makes sum (x - Q(x))^2 smallest; the larger f on a tie
    tokenwise:q    q quantile over tokens of every token's maximum, and the same of -x for the minimum (Outlier Suppression, Wei et al.
                   2022, arXiv 2209.13325, section 4.2; OS+ calibrates BLOOM with it)

`find_range` does it for the tensor at hand, exactly. `range_of` gives an accumulator (update, merge, result) for calibration: extremes are
exact, the others count in buckets of 1/64 octave, so that a percentile is within 1 %. `merge` is associative and commutative.
Limits: NaN makes the range NaN; an infinity makes it infinite under minmax and NaN under the others. One value is its own range.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.errors import EmptyBatch, MergeMismatch, UnknownOption
from skerry.impact.quantize import CHUNK, Grid, find_grid, min_max, round_trip
from skerry.impact.scheme import TensorSpec
from skerry.measure.sketch import QuantileSketch, histogram

SHRINK = tuple(1 - k / 100 for k in range(81))
"""Shrink factors of the mse search, the largest first."""
POINTS = 8
"""Points that stand for the values of one bucket: a bucket near the maximum spans two levels of int8."""


class Extent(NamedTuple):
    """A range of values."""

    low: Tensor
    high: Tensor


@torch.no_grad()
def find_range(pieces: Tensor, spec: TensorSpec) -> Extent:
    """The range of every slice of the tensor at hand.

    Args:
        pieces: [row column], or [row group column] where the spec has groups; not empty.
        spec: What shares a range, and the observer.

    Returns:
        In the shape of a grid: [1, 1], [row, 1], [1, column] or [row, group, 1].
    """
    if spec.observer == "minmax":
        return Extent(*min_max(pieces, spec))
    values = slices_of(pieces, spec)
    if spec.observer_kind == "percentile":
        found = central_range(values, spec.observer_value / 100)
    elif spec.observer_kind == "mse":
        found = _least_error(values, spec)
    else:
        q = spec.observer_value
        found = Extent(-upper_quantile(-pieces.amin(1)[None], q), upper_quantile(pieces.amax(1)[None], q))
    shape = {"tensor": (1, 1), "column": (1, pieces.shape[-1])}.get(spec.granularity, (*pieces.shape[:-1], 1))
    return Extent(found.low.reshape(shape), found.high.reshape(shape))


def slices_of(pieces: Tensor, spec: TensorSpec) -> Float[Tensor, "slice value"]:
    """The values that share a grid, one slice per row."""
    if spec.granularity == "tensor":
        return pieces.reshape(1, -1)
    return pieces.T if spec.granularity == "column" else pieces.reshape(-1, pieces.shape[-1])


def central_range(values: Float[Tensor, "slice value"], share: float) -> Extent:
    """The range of the central share of every slice's values, between neighbours linearly."""
    q = (1 + share) / 2
    return Extent(-upper_quantile(-values, q), upper_quantile(values, q))


def upper_quantile(values: Float[Tensor, "slice value"], q: float) -> Float[Tensor, "slice"]:
    """The q quantile of every row, linear between neighbours; NaN where a row holds NaN, which sorts as the largest.

    Only the values from there upwards are sorted, which are few where q is near 1.
    """
    count = values.shape[1]
    place = q * (count - 1)
    below = min(int(place), count - 1)
    top = values.topk(count - below, dim=1).values
    if top.shape[1] == 1:
        return top[:, 0]
    quantile = torch.lerp(top[:, -1], top[:, -2], place - below)
    return torch.where(torch.isnan(top[:, 0]), torch.nan, quantile)


def _least_error(values: Float[Tensor, "slice value"], spec: TensorSpec) -> Extent:
    """The shrunk range with the least squared error of every slice."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    errors = torch.zeros(len(SHRINK), len(values), dtype=torch.float64, device=values.device)
    rows = max(1, CHUNK // values.shape[1])
    for i in range(0, len(values), rows):
        here = slice(i, i + rows)
        for part in values[here].split(CHUNK, dim=1):
            for k, factor in enumerate(SHRINK):
                grid = find_grid(low[here] * factor, high[here] * factor, spec)
                errors[k, here] += _squares(part, spec, grid).sum(1, dtype=torch.float64)
    best = torch.tensor(SHRINK, dtype=torch.float64, device=values.device)[errors.argmin(0)]
    chosen = best[:, None].to(values.dtype)
    return Extent(low * chosen, high * chosen)


def _squares(x: Tensor, spec: TensorSpec, grid: Grid) -> Tensor:
    return (round_trip(x, spec, grid).to(x.dtype) - x).float().square_()


class Range:
    """Accumulator of the smallest and largest value, per tensor or per column; base of the others."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.extremes: Extent | None = None
        """In float64, [1, 1] or [1, column]; None before the first value."""

    @torch.no_grad()
    def update(self, x: Float[Tensor, "row column"]) -> None:
        """Read more values; a tensor without any changes nothing."""
        if not x.numel():
            return
        low, high = min_max(x, self.spec)
        self._widen(Extent(low.double(), high.double()))
        self._count(x)

    def _widen(self, other: Extent) -> None:
        if self.extremes is None:
            self.extremes = other
            return
        if other.low.shape != self.extremes.low.shape:
            raise MergeMismatch(
                f"ranges of {self.extremes.low.shape[1]} and of {other.low.shape[1]} columns: "
                "they were read at different places"
            )
        # torch's minimum and maximum keep NaN, whichever side has it.
        self.extremes = Extent(
            torch.minimum(self.extremes.low, other.low), torch.maximum(self.extremes.high, other.high)
        )

    def merge(self, other: Range) -> None:
        """Take in what `other` has read.

        Raises:
            MergeMismatch: It reads for another spec, or other columns.
        """
        if other.spec != self.spec:
            raise MergeMismatch(
                f"ranges can be merged only with the same spec; here they have {self.spec} and {other.spec}"
            )
        if other.extremes is not None:
            self._widen(other.extremes)
        self._take(other)

    def result(self) -> Extent:
        """The range in float32, [1, 1] or [1, column]; NaN where a value was.

        Raises:
            EmptyBatch: No value was read.
        """
        if self.extremes is None:
            raise EmptyBatch(
                "no value was read, so there is no range; calibrate on text that reaches this place"
            )
        found = self._choose(self.extremes)
        return Extent(found.low.float(), found.high.float())

    def _count(self, x: Float[Tensor, "row column"]) -> None:
        """Read what the extremes do not tell."""

    def _take(self, other: Range) -> None:
        """Merge what the extremes do not tell."""

    def _choose(self, extremes: Extent) -> Extent:
        return extremes


class SignedSketch:
    """Mergeable histogram of signed values in buckets of 1/64 octave; what is not finite is left out."""

    def __init__(self) -> None:
        self.negative = QuantileSketch()
        self.positive = QuantileSketch()

    def add(self, x: Float[Tensor, "..."]) -> None:
        """Count more values."""
        x = x[torch.isfinite(x)]
        self.positive.add(histogram(x[x >= 0]))
        self.negative.add(histogram(x[x < 0]))

    def merge(self, other: SignedSketch) -> None:
        """Take in the counts of another sketch."""
        self.positive.merge(other.positive)
        self.negative.merge(other.negative)

    def result(self, q: float) -> float:
        """The smallest value (to 1 %) such that a share of at least q of the values is not above it."""
        below, above = self.negative.count, self.positive.count
        rank = max(1, int(np.ceil(q * (below + above))))
        if rank > below:
            return self.positive.result((rank - below - 0.5) / above)
        # The rank-th smallest of the negative ones is the (below - rank + 1)-th smallest |x| of them.
        return -self.negative.result((below - rank + 0.5) / below)

    def points(self, per_bucket: int) -> Points:
        """Values that stand for all, spread evenly over every bucket, with their shares of the count."""
        values, weights = [], []
        for sketch, sign in ((self.negative, -1.0), (self.positive, 1.0)):
            used = np.flatnonzero(sketch.counts)
            edges = (
                np.array([sketch.first + used, sketch.first + used + 1], np.uint32) << np.uint32(17)
            ).view(np.float32)
            low, high = edges.astype(np.float64)
            # What is below 2^-126 counts as 0, and the last bucket ends where float32 does.
            high = np.where(sketch.first + used == 0, 0.0, np.minimum(high, np.finfo(np.float32).max))
            inside = (np.arange(per_bucket) + 0.5) / per_bucket
            values.append(sign * (low[:, None] + (high - low)[:, None] * inside).ravel())
            weights.append(np.repeat(sketch.counts[used] / per_bucket, per_bucket))
        return Points(torch.from_numpy(np.concatenate(values)), torch.from_numpy(np.concatenate(weights)))


class Points(NamedTuple):
    """Values that stand for a distribution."""

    values: Tensor
    weights: Tensor


class PercentileRange(Range):
    """The central p percent of all values, to 1 %."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self.sketch = SignedSketch()

    def _count(self, x: Float[Tensor, "row column"]) -> None:
        self.sketch.add(x)

    def _take(self, other: Range) -> None:
        assert isinstance(other, PercentileRange)
        self.sketch.merge(other.sketch)

    def _choose(self, extremes: Extent) -> Extent:
        if not _is_finite(extremes):
            return _nan_like(extremes)
        share = self.spec.observer_value / 100
        return _within(extremes, self.sketch.result((1 - share) / 2), self.sketch.result((1 + share) / 2))


class LeastErrorRange(PercentileRange):
    """The shrunk range with the least squared error over all values, each bucket taken for evenly filled."""

    def _choose(self, extremes: Extent) -> Extent:
        if not _is_finite(extremes):
            return _nan_like(extremes)
        points = self.sketch.points(POINTS)
        errors = []
        for factor in SHRINK:
            grid = find_grid(extremes.low * factor, extremes.high * factor, self.spec)
            errors.append(float((_squares(points.values[None], self.spec, grid)[0] * points.weights).sum()))
        factor = SHRINK[int(np.argmin(errors))]
        return Extent(extremes.low * factor, extremes.high * factor)


class TokenwiseRange(Range):
    """A quantile over tokens of every token's extremes, to 1 %."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self.lows, self.highs = SignedSketch(), SignedSketch()

    def _count(self, x: Float[Tensor, "row column"]) -> None:
        self.lows.add(-x.amin(1))
        self.highs.add(x.amax(1))

    def _take(self, other: Range) -> None:
        assert isinstance(other, TokenwiseRange)
        self.lows.merge(other.lows)
        self.highs.merge(other.highs)

    def _choose(self, extremes: Extent) -> Extent:
        if not _is_finite(extremes):
            return _nan_like(extremes)
        q = self.spec.observer_value
        return _within(extremes, -self.lows.result(q), self.highs.result(q))


def range_of(spec: TensorSpec) -> Range:
    """A fresh accumulator of the static range of a spec, per tensor or per column.

    Args:
        spec: Of inputs or a cache, with `dynamic` off.

    Raises:
        UnknownOption: A range of that granularity and observer cannot come from calibration.
    """
    if spec.granularity not in ("tensor", "column"):
        raise UnknownOption(f"{spec}: a static range is per 'tensor' or 'column', not per {spec.granularity}")
    if spec.granularity == "column" and spec.observer != "minmax":
        raise UnknownOption(
            f"{spec}: a static range per column takes observer 'minmax', not {spec.observer!r}"
        )
    kinds = {
        "minmax": Range,
        "percentile": PercentileRange,
        "mse": LeastErrorRange,
        "tokenwise": TokenwiseRange,
    }
    return kinds[spec.observer_kind](spec)


def _is_finite(extremes: Extent) -> bool:
    return all(bool(torch.isfinite(e).all()) for e in extremes)


def _nan_like(extremes: Extent) -> Extent:
    return Extent(*(torch.full_like(e, torch.nan) for e in extremes))


def _within(extremes: Extent, low: float, high: float) -> Extent:
    """A range, not wider than the extremes: the middle of the last bucket may lie beyond them."""
    return Extent(
        torch.maximum(extremes.low, torch.full_like(extremes.low, low)),
        torch.minimum(extremes.high, torch.full_like(extremes.high, high)),
    )
