"""When a kind of outlier was born: the curve of its level over the steps, and the step at which it had made half of its rise.

    level(t)   = max over layers of the kind's measure at step t (activation: max/median of resid.out; weight: weight_ratio of the
                 down projections; attention: first_share of the strongest head)
    start      = level at the first step          final = median of the last tenth of the steps measured (at least three)
    base       = start; 0 where the series begins after step 0 and start is a level that no new model has (`standing`)
    born       when final >= 1.5 base
    threshold  = base + (final - base) / 2
    onset      = first step t with level(t) >= threshold, and so at nine tenths of all later steps measured

The rise is halved and not the level, because none of the three begins at 0: a Gaussian has a max/median of 5 to 7 and a new matrix a ratio of
5 to 6, so half of a final ratio of 9 is passed before the first step. Limits: a step function has its onset at the step; a straight
line from 0 to c over T steps at T/2; a spike that is gone within a tenth of the time is no onset. Where the first step measured has passed
the threshold already the onset is that step and `before` is None: it lies there or earlier.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

BORN = 1.5
HELD = 0.9
END = 0.1
MIN_END = 3
_ALMOST = 1e-9  # a level that is the threshold but for rounding has reached it


class Followed(NamedTuple):
    """What stands for a kind: the largest value of a column over the layers of a site.

    Attributes:
        site: Whose rows.
        measure: Which column.
        standing: From this level on a series that begins after step 0 begins with outliers.
    """

    site: str
    measure: str
    standing: float


# New decoders (0.1 to 5 million parameters, 128 tokens) were measured at 6 to 11, 0.04 to 0.05 and 5.6 to 6.1; 0.3 is Gu et al.'s.
KINDS = {
    "activation": Followed("resid.out", "max_to_median", 20.0),
    "attention": Followed("attn.probs", "first_share", 0.3),
    "weight": Followed("w.down", "weight_ratio", 10.0),
}


class Curve(NamedTuple):
    """A level over the steps.

    Attributes:
        steps: Optimizer steps done, ascending.
        levels: The level at each.
    """

    steps: tuple[int, ...]
    levels: tuple[float, ...]


class Onset(NamedTuple):
    """When a level rose.

    Attributes:
        start: Level at the first step.
        final: Level at the end.
        peak: Largest level.
        peak_step: Step of it.
        threshold: Half of the rise.
        onset: First step at which it is passed and held; None when none was born.
        before: Last step measured before it; None when it is the first, so that nothing is known of earlier steps.
    """

    start: float
    final: float
    peak: float
    peak_step: int
    threshold: float
    onset: int | None
    before: int | None


def curve(rows: Iterable[Mapping[str, Any]], site: str, measure: str) -> Curve:
    """The largest value of a column over layers (and experts), step by step.

    Args:
        rows: Rows of one training, as a monitor returns them.
        site: Whose rows.
        measure: Which column; steps at which it has no value anywhere are left out.
    """
    levels: dict[int, float] = {}
    for row in rows:
        value = row.get(measure)
        if row["site"] == site and value is not None and math.isfinite(value):
            levels[row["step"]] = max(value, levels.get(row["step"], -math.inf))
    steps = tuple(sorted(levels))
    return Curve(steps, tuple(levels[step] for step in steps))


def kind_curve(rows: Iterable[Mapping[str, Any]], kind: str) -> Curve:
    """The curve that stands for a kind of outlier."""
    return curve(rows, KINDS[kind].site, KINDS[kind].measure)


def onset_of(of: Curve, *, standing: float = math.inf) -> Onset | None:
    """When the level rose, by the rule above; None without a step.

    Args:
        of: The level over the steps.
        standing: A level that no new model has.
    """
    if not of.steps:
        return None
    levels = np.asarray(of.levels)
    start, final = float(levels[0]), _final(levels)
    is_late = of.steps[0] > 0 and start >= standing
    base = 0.0 if is_late else start
    threshold = base + (final - base) / 2
    is_born = final >= standing if is_late else final >= BORN * base and final > 0
    at = _held(levels, threshold * (1 - _ALMOST)) if is_born else None
    peak = int(levels.argmax())
    return Onset(
        start=start,
        final=final,
        peak=float(levels[peak]),
        peak_step=of.steps[peak],
        threshold=threshold,
        onset=None if at is None else of.steps[at],
        before=of.steps[at - 1] if at else None,
    )


def _final(levels: np.ndarray) -> float:
    """The level at the end; of a short series its last value."""
    count = max(MIN_END, math.ceil(END * len(levels))) if len(levels) > 2 * MIN_END else 1
    return float(np.median(levels[-count:]))


def _held(levels: np.ndarray, threshold: float) -> int | None:
    """The first place at or above the threshold from which on nine tenths are."""
    above = levels >= threshold
    later = np.cumsum(above[::-1])[::-1] / np.arange(len(above), 0, -1)
    found = np.flatnonzero(above & (later >= HELD))
    return int(found[0]) if len(found) else None


def onset_rows(rows: Sequence[Mapping[str, Any]], series: str) -> list[dict[str, Any]]:
    """Rows of the table `birth_onsets` of one training; a kind that was not measured has none.

    Args:
        rows: Rows of the training, as a monitor returns them.
        series: Its name.
    """
    found = {kind: onset_of(kind_curve(rows, kind), standing=KINDS[kind].standing) for kind in KINDS}
    return [
        {"series": series, "kind": kind, "measure": KINDS[kind].measure, **onset._asdict()}
        for kind, onset in found.items()
        if onset is not None
    ]
