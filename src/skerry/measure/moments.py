"""Mean and central power sums up to the fourth, many series at once, in float64.

    M_k = sum_i (x_i - mean)^k        skewness = (M3/n) / (M2/n)^1.5        kurtosis = (M4/n) / (M2/n)^2

Series pool exactly (Chan et al. 1982, Pebay 2008); with d the distance of a part's mean from the common one:
    M2 = sum(M2 + n d^2)    M3 = sum(M3 + 3 d M2 + n d^3)    M4 = sum(M4 + 4 d M3 + 6 d^2 M2 + n d^4)
Limit: one part pools to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A spread below this share of the mean is rounding: the series is constant and has no shape.
_CONSTANT = 1e-7


@dataclass
class Moments:
    """Moments of many series.

    Attributes:
        count: int64 [series], how many values.
        sums: float64 [4, series]: mean, M2, M3, M4; zero where count is zero.
    """

    count: np.ndarray
    sums: np.ndarray

    @classmethod
    def zeros(cls, num: int) -> Moments:
        """Of `num` series that have no value yet."""
        return cls(np.zeros(num, np.int64), np.zeros((4, num)))

    def merge(self, other: Moments) -> None:
        """Take in more values of the same series, in place."""
        both = pool(np.stack([self.count, other.count]), np.stack([self.sums, other.sums]))
        self.count[...], self.sums[...] = both.count, both.sums

    def pooled(self) -> Moments:
        """All series as one."""
        return pool(self.count[:, None], np.ascontiguousarray(self.sums.T)[:, :, None])

    @property
    def mean(self) -> np.ndarray:
        """Mean; NaN without values."""
        return np.where(self.count > 0, self.sums[0], np.nan)

    @property
    def variance(self) -> np.ndarray:
        """Population variance; NaN without values."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.count > 0, self.sums[1] / self.count, np.nan)

    @property
    def mean_square(self) -> np.ndarray:
        """Mean of x^2; NaN without values."""
        return self.variance + self.mean**2

    @property
    def skewness(self) -> np.ndarray:
        """m3 / m2^1.5; NaN for a constant series."""
        return self._shape(2, 1.5)

    @property
    def kurtosis(self) -> np.ndarray:
        """m4 / m2^2, 3 for a Gaussian; NaN for a constant series."""
        return self._shape(3, 2.0)

    def _shape(self, which: int, power: float) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            std = np.sqrt(self.sums[1] / self.count)
            # Divided step by step: m2^2 of tiny or huge values leaves the range of float64.
            value = self.sums[which] / self.count / std**2 / std ** (2 * power - 2)
            return np.where((self.count > 0) & (std > _CONSTANT * np.abs(self.sums[0])), value, np.nan)


def pool(count: np.ndarray, sums: np.ndarray) -> Moments:
    """Parts along the first axis made one.

    Args:
        count: int64 [part, series].
        sums: float64 [part, 4, series].

    Returns:
        The moments [series] of all parts together.
    """
    n = count.astype(np.float64)
    total = count.sum(0)
    mean = (n * sums[:, 0]).sum(0) / np.maximum(total, 1)
    d = np.where(count > 0, sums[:, 0] - mean, 0.0)
    m2, m3, m4 = sums[:, 1], sums[:, 2], sums[:, 3]
    return Moments(
        total,
        np.stack(
            [
                mean,
                (m2 + n * d**2).sum(0),
                (m3 + 3 * d * m2 + n * d**3).sum(0),
                (m4 + 4 * d * m3 + 6 * d**2 * m2 + n * d**4).sum(0),
            ]
        ),
    )
