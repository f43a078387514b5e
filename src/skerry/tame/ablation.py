"""What each part of Outlier Suppression+ brings: the published search, and one part after the other switched on.

Every step keeps the parts before it, so a gain is that of a part given those before it; another order would share the gains otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from skerry.causes.bootstrap import bootstrap
from skerry.tame.method import Found, Job
from skerry.tame.methods.os_plus import search
from skerry.tame.os_plus_choices import KINDS, PUBLISHED

# Name of the part and the choices that it sets, in order.
PARTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as published", {}),
    ("all calibration batches", {"batches": "all"}),
    ("seams v -> o", {"kinds": ("norm", "post-norm", "value")}),
    ("seams up -> down", {"kinds": KINDS}),
    ("scales below 1", {"floor": False}),
    ("thresholds of their own for the two sides", {"asymmetric": True}),
    ("shift wherever a bias can take it", {"shift": True}),
    ("coarse to fine, with nothing as a candidate", {"search": "fine"}),
    ("blocks that see untouched inputs", {"upstream": "float"}),
    ("check of the rounded block", {"check": True}),
)


class Priced(NamedTuple):
    """What a found change costs.

    Attributes:
        loss: Mean over held-out tokens.
        per_input: The same by input; None: no interval is given.
        weights: Tokens of each input; None: equal.
    """

    loss: float
    per_input: np.ndarray | None = None
    weights: np.ndarray | None = None


def ablate(job: Job, evaluate: Callable[[Found], float | Priced], *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the table `parts`: step, part, loss, change against the step before, and its interval.

    Args:
        job: The model, its seams, calibration and scheme; its own options are not used.
        evaluate: The price of what was found, on held-out tokens, always the same ones.
        seed: Of the resampling.

    Returns:
        One row per step; change and interval are None in the first, and the interval is None where prices are bare numbers.
    """
    rows: list[dict[str, Any]] = []
    choices = PUBLISHED
    before: Priced | None = None
    for step, (part, changed) in enumerate(PARTS):
        choices = replace(choices, **changed)
        price = evaluate(search(replace(job, recalled={}, remember=_forget), choices))
        now = price if isinstance(price, Priced) else Priced(float(price))
        low = high = None
        if before is not None and now.per_input is not None and before.per_input is not None:
            interval = bootstrap(now.per_input - before.per_input, now.weights, seed=seed)
            low, high = interval.low, interval.high
        change = None if before is None else now.loss - before.loss
        rows.append(
            {"step": step, "part": part, "loss": now.loss, "change": change, "ci_low": low, "ci_high": high}
        )
        before = now
    return rows


def _forget(*_: Any) -> None:
    """Blocks of one step are not those of the next."""
