"""The one colour scale of all heat maps: steps of max / median, the same in terminal, report and figures.

A Gaussian tensor of a million values has max / median of about 7, so everything below 10 is calm water (step 0). From there the steps
are about 1.4-fold up to 60, where outlier channels live, then wider where only massive activations go.
"""

from __future__ import annotations

import math
from bisect import bisect_right

RATIO_STEPS = (10.0, 14.0, 20.0, 28.0, 40.0, 60.0, 100.0, 200.0, 400.0, 1000.0, 4000.0)
SHARE_STEPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM_STEPS = len(RATIO_STEPS) + 1

# One hue family from paper to ink; lightness is monotone, so it also reads in grey and for every kind of colour vision.
LIGHT = (
    "#f0f3f2", "#deeae9", "#c6dedf", "#a9ced3", "#88bbc6", "#67a5b8", "#3a7a98", "#2d6a90", "#255b84", "#1b446d", "#142f54", "#0e1c3a",
)  # fmt: skip
DARK = (
    "#1b2226", "#1d2c33", "#1f3843", "#224656", "#25566a", "#29647a", "#2e7086", "#4692a3", "#62a9b1", "#88c1bf", "#b4d8d0", "#e3efe6",
)  # fmt: skip
# Letter of each step where there is no colour.
LETTERS = "·123456789AB"


def ratio_step(value: float | int | None) -> int:
    """Step of a ratio to the median, 0 to 11; 0 for what is not known, 11 for infinity."""
    return _step(value, RATIO_STEPS)


def share_step(value: float | int | None) -> int:
    """Step of a share (0 to 1), 0 to 11."""
    return _step(value, SHARE_STEPS)


def _step(value: float | int | None, steps: tuple[float, ...]) -> int:
    return 0 if value is None or math.isnan(value) else bisect_right(steps, value)


def ink(step: int, *, dark: bool = False) -> str:
    """The text colour that is readable on a step."""
    if dark:
        return "#10181c" if step >= 7 else "#e8edeb"
    return "#ffffff" if step >= 6 else "#17242b"
