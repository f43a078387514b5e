"""How claims say numbers."""

from __future__ import annotations

import math

from skerry.causes.bootstrap import Interval


def number(x: float) -> str:
    """Three digits that matter: 0.0123, 4.21, 1180."""
    if not math.isfinite(x):
        return "unknown"
    if x != 0 and (abs(x) < 1e-3 or abs(x) >= 1e6):
        return f"{x:.2e}"
    if abs(x) >= 1000:
        return f"{x:.0f}"
    text = f"{x:.3g}"
    return "0" if text == "-0" else text


def percent(x: float) -> str:
    """A share as a percentage."""
    return f"{number(100 * x)} %" if math.isfinite(x) else "unknown"


def span(interval: Interval) -> str:
    """A number with its interval: 2.1 [1.8, 2.5]."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{number(interval.value)} (too few units for an interval)"
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def percent_span(interval: Interval) -> str:
    """A share with its interval: 93 % [88, 97]."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{percent(interval.value)} (too few units for an interval)"
    return f"{percent(interval.value)} [{number(100 * interval.low)}, {number(100 * interval.high)}]"


def counted(num: int, one: str, many: str | None = None) -> str:
    """`1 head`, `3 heads`."""
    return f"{num} {one if num == 1 else many or one + 's'}"
