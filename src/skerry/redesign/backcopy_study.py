"""Which attention and which optimiser grow sinks and peaks on Bigram-Backcopy: arms x seeds, as a table with intervals.

Guo et al. 2024 (arXiv 2410.13835) say: softmax with Adam has sinks, value drains and residual peaks; ReLU attention has none of them; SGD in
Adam's place has the sinks and not the peaks. An arm is compared with `softmax` seed by seed, as both start from the same weights and read the
same sequences; intervals are Student's, 95 %, over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import stats

from skerry.redesign.backcopy_train import Arm, Point, Size

MEASURES = {
    "sink": "share of <s> in the attention of queries that are no trigger, in the layer where it exceeds the triggers' most",
    "sink_on_triggers": "the same of queries on triggers, in that layer",
    "delta_logit": "logit of <s> less the mean of the others, in that layer",
    "value_ratio": "norm of the value of <s> over the others', in that layer",
    "peak": "norm of <s> in the residual stream over the others', in the layer where it is largest",
    "backcopy_excess": "excess risk after triggers, nats",
    "bigram_excess": "excess risk after other tokens, nats",
}


class Plan(NamedTuple):
    """Arms of one depth.

    Attributes:
        size: What is equal in all of them.
        arms: The first is what the others are compared with.
    """

    size: Size
    arms: tuple[Arm, ...]


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: Of the seeds.
        low: Lower end of the 95 % interval; NaN for one seed.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


def plans() -> dict[str, Plan]:
    """The published comparison at one layer, where sinks show, and at three, where peaks do.

    Sizes are small enough for half a minute of one core and large enough for both to show in softmax. Rates are the largest tried (AdamW 1e-3,
    3e-3, 1e-2; SGD 0.1, 0.3) at which the loss fell steadily at that depth: sinks and peaks grow late, and a low rate only makes them wait.
    """
    return {
        name: Plan(
            Size(layers=layers, width=48, length=48, samples=16, steps=1500),
            (
                Arm("softmax", lr=lr),
                Arm("relu", attention="relu", lr=lr),
                Arm("softmax, SGD", optimiser="sgd", lr=sgd_lr),
            ),
        )
        for name, layers, lr, sgd_lr in (("one layer", 1, 1e-2, 0.3), ("three layers", 3, 3e-3, 0.1))
    }


def summarize(points: Sequence[Point]) -> dict[str, float]:
    """The numbers of `MEASURES`, each the mean over the readings of the last third of a training: single ones sway.

    Args:
        points: Readings of one training.
    """
    late = [p for p in points if 3 * p.step >= 2 * points[-1].step]
    found = [_summary_of(p) for p in late]
    return {name: math.fsum(x[name] for x in found) / len(found) for name in MEASURES}


def _summary_of(point: Point) -> dict[str, float]:
    layers = point.reading.layers
    sink = max(layers, key=lambda layer: layer.share_on_others - layer.share_on_triggers)
    return {
        "sink": sink.share_on_others,
        "sink_on_triggers": sink.share_on_triggers,
        "delta_logit": sink.delta_logit,
        "value_ratio": sink.value_ratio,
        "peak": max(layer.residual_ratio for layer in layers),
        "backcopy_excess": point.reading.excess.backcopy,
        "bigram_excess": point.reading.excess.bigram,
    }


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval of one number per seed."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, math.nan)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)
    half = float(stats.t.ppf(0.975, count - 1)) * spread
    return Estimate(mean, mean - half, mean + half)


def tabulate(runs: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One row per arm: every measure with its interval, and its difference from the baseline's, paired by seed.

    Args:
        runs: One training each: `arm`, `seed` and the numbers of `summarize`.
        baseline: Name of the arm that the others are compared with.
    """
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    rows = []
    for arm, seeds in by_arm.items():
        both = sorted(seeds.keys() & by_arm.get(baseline, {}).keys()) if arm != baseline else []
        rows.append(
            {
                "arm": arm,
                "seeds": len(seeds),
                **{name: estimate([run[name] for run in seeds.values()]) for name in MEASURES},
                "change": {
                    name: estimate([seeds[s][name] - by_arm[baseline][s][name] for s in both])
                    for name in MEASURES
                    if both
                },
            }
        )
    return rows
