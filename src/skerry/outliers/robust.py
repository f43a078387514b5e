"""How far out of its own kind: a robust z of the log magnitude, with the scale of the upper half.

    score_j = (log m_j - median log m) / s        s = max((log q75 - log q50) / 0.6745 (1 + 1.79 / sqrt d), 0.05)

1.79 / sqrt d is the relative standard error of that scale from d Gaussian peers (1.21 / sqrt d of the quartile distance 0.6745): of 32
peers it may well be a third too small, and the largest of a narrow site must not be called an outlier for that.
The lower half is left out because dead and idle channels stretch it without end, and would hide what stands out above. The floor
(5 %) keeps equal peers, such as the gains of an untrained norm, from making a percent look like a mountain. For many log-normal peers
the score is the usual z; for the half-normal magnitudes of a random vector the largest of 4096 scores about 2.1.
"""

from __future__ import annotations

import numpy as np

from skerry.outliers.frames import Frame

FLOOR = 0.05
STANDARD_ERROR = 1.79
MIN_PEERS = 8
"""With fewer peers there is no distribution to stand out of."""


class Standing:
    """Where every row stands among the rows of its group.

    Attributes:
        ratio: float64 [row], magnitude / median magnitude of the group; NaN where there is none.
        score: float64 [row], robust z of its logarithm; -inf where the magnitude is zero, NaN in groups of fewer than 8.
        median: float64 [group].
    """

    def __init__(self, frame: Frame, magnitude: np.ndarray, mask: np.ndarray | None = None) -> None:
        positive = magnitude > 0 if mask is None else (magnitude > 0) & mask
        with np.errstate(divide="ignore", invalid="ignore"):
            log = np.where(magnitude >= 0, np.log(magnitude), np.nan)
            centre, upper = frame.quantiles(log, (0.5, 0.75), positive)
            num = frame.count(positive)
            error = 1 + STANDARD_ERROR / np.sqrt(np.maximum(num, 1))
            spread = np.maximum((upper - centre) / 0.6745 * error, FLOOR)
            centre[num < MIN_PEERS] = np.nan
            self.score = (log - centre[frame.group]) / spread[frame.group]
            self.ratio = magnitude / np.exp(centre)[frame.group]
        self.median = np.exp(centre)
