"""The learning rate over the steps, as a factor on its peak.

cosine:   (t + 1) / w during warm-up, then f + (1 - f) (1 + cos(pi u)) / 2,  u = (t - w) / (T - w)
wsd:      the same warm-up, then 1, and over the last share d of all steps linearly down to f   (Hu et al. 2024, MiniCPM)
constant: the same warm-up, then 1
"""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "wsd", "constant")


def factor(
    step: int, *, schedule: str, steps: int, warmup: int, final: float, decay_share: float = 0.2
) -> float:
    """Factor at `step`, counted from 0."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        start = steps - decay_share * steps
        return 1.0 if step < start else final + (1 - final) * (steps - step) / (steps - start)
    share = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
