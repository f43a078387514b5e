"""Quantiles of |x| from a histogram whose buckets are as wide as float32's own first six bits of mantissa.

    bucket(x) = bits(float32 |x|) >> 17        8 bits of exponent, 6 of mantissa: 16384 buckets, 64 per octave

A bucket spans at most 1/64 of its lower end, so its middle is within 1/128 = 0.8 % of every value in it, whatever the data: the
stated relative error is 1 %. Merging adds counts, which is exact. Only the octaves in use are kept. Values below 2^-126 count as 0.
Limit: with one value the quantile is the middle of its bucket.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.measure.accumulator import pack, unpack

NUM_BUCKETS = 1 << 14
RELATIVE_ERROR = 0.01
_SHIFT = 17
_OCTAVE = 64
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def histogram(x: Float[Tensor, "..."]) -> np.ndarray:
    """int64 [bucket] counts of the finite values of x."""
    size = x[torch.isfinite(x)].abs().clamp(max=_FLOAT32_MAX).float()
    buckets = size.view(torch.int32) >> _SHIFT
    return torch.bincount(buckets.long(), minlength=NUM_BUCKETS).cpu().numpy()


class QuantileSketch:
    """Mergeable histogram of |x|."""

    def __init__(self) -> None:
        self.first = 0
        """Bucket number of counts[0]; a multiple of 64."""
        self.counts = np.zeros(0, np.int64)

    def add(self, counts: np.ndarray, first: int = 0) -> None:
        """Count more values.

        Args:
            counts: [bucket] how many values fell in each bucket.
            first: Number of the first bucket of `counts`; a multiple of 64.
        """
        used = np.flatnonzero(counts)
        if not used.size:
            return
        low = int(used[0]) // _OCTAVE * _OCTAVE
        high = -(-(int(used[-1]) + 1) // _OCTAVE) * _OCTAVE
        self._cover(first + low, first + high)
        part = counts[low:high]
        at = first + low - self.first
        self.counts[at : at + len(part)] += part

    def _cover(self, low: int, high: int) -> None:
        if not len(self.counts):
            self.first = low
        new_low = min(low, self.first)
        new_high = max(high, self.first + len(self.counts))
        if new_high - new_low != len(self.counts):
            wider = np.zeros(new_high - new_low, np.int64)
            at = self.first - new_low
            wider[at : at + len(self.counts)] = self.counts
            self.first, self.counts = new_low, wider

    def merge(self, other: QuantileSketch) -> None:
        """Take in the counts of another sketch."""
        self.add(other.counts, other.first)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def result(self, q: float) -> float:
        """The smallest value v (to 1 %) such that a share of at least q of the values is <= v; NaN without values.

        Args:
            q: Between 0 and 1.
        """
        total = self.count
        if not total:
            return float("nan")
        rank = max(1, int(np.ceil(q * total)))
        bucket = self.first + int(np.searchsorted(np.cumsum(self.counts), rank))
        return _middle(bucket)

    def state(self) -> dict[str, Tensor]:
        """The counts in use and where they begin."""
        return pack({"first": np.array([self.first], np.int64), "counts": self.counts})

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> QuantileSketch:
        """The sketch that wrote `state`."""
        arrays = unpack(state)
        sketch = cls()
        sketch.first, sketch.counts = int(arrays["first"][0]), arrays["counts"]
        return sketch


def _middle(bucket: int) -> float:
    if bucket == 0:
        return 0.0
    ends = np.array([bucket, bucket + 1], np.uint32) << np.uint32(_SHIFT)
    low, high = (float(v) for v in ends.view(np.float32))
    return low + (high - low) / 2 if np.isfinite(high) else low * (1 + 1 / 256)
