"""How fast a variant trains beside the baseline: steps of both in turn, in one process, so that what else the machine does hits both.

    ratio_r = seconds of k steps of the baseline in round r / seconds of k steps of the variant in round r
    ratio   = median over rounds, with the smallest and the largest round

Tokens per second of a training are those of the machine at that time and are no comparison; this is. Limit: the baseline beside itself is
1 but for noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from skerry.anatomy.placing import choose_device
from skerry.redesign.recipe import Recipe
from skerry.redesign.study_plan import Plan
from skerry.redesign.train_data import Data, load_data
from skerry.redesign.train_speed import Stepper
from skerry.run.progress import Progress, Silent

ROUNDS, STEPS, WARMUP = 5, 2, 2
Row = dict[str, Any]


def speeds(
    plan: Plan,
    texts: Mapping[str, Recipe],
    *,
    device: str | None = None,
    rounds: int = ROUNDS,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of the table `study_speed`, one for each label and size.

    Args:
        plan: The study; the first seed of a label stands for all.
        texts: By size, a recipe with the text and tokenizer that were made ready.
        device: Where to step; chosen when None.
        rounds: Comparisons.
        steps: Of each in a round.
        progress: Told how far it is.
    """
    progress = progress or Silent()
    place = choose_device(device).value
    first = {(a.label, a.size): a.recipe for a in reversed(plan.arms)}
    progress.start("comparing speed", len(first), "decoder")
    rows: list[Row] = []
    with torch.random.fork_rng():
        for size in plan.sizes:
            mine = {
                label: replace(first[label, size], text=texts[size].text, tokenizer=texts[size].tokenizer)
                for label in plan.labels
                if (label, size) in first
            }
            data = load_data(next(iter(mine.values())), None)
            base = Stepper(mine.get(plan.baseline) or next(iter(mine.values())), data, torch.device(place))
            base.seconds(WARMUP)
            for label, recipe in mine.items():
                rows.append(
                    {"label": label, "size": size, **_compare(base, recipe, data, rounds=rounds, steps=steps)}
                )
                progress.advance()
    progress.done()
    return rows


def _compare(base: Stepper, recipe: Recipe, data: Data, *, rounds: int, steps: int) -> Row:
    other = Stepper(recipe, data, base.device)
    other.seconds(WARMUP)
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            mine = other.seconds(steps)
            times.append((base.seconds(steps), mine))
        else:
            times.append((base.seconds(steps), other.seconds(steps)))
    ratios = [b / m for b, m in times]
    seconds = statistics.median(m for _, m in times) / steps
    tokens = recipe.batch * recipe.accumulation * recipe.context
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "num_rounds": rounds,
    }


def estimate(rows: Sequence[Row], plan: Plan, *, processes: int, left: Sequence[tuple[str, str]]) -> float:
    """Seconds that the arms that are left will take, from the time of a step beside whatever else the machine does.

    Args:
        rows: As `speeds` gave them.
        plan: The study.
        processes: At once.
        left: Label and size of each arm that is left.
    """
    step = {(r["label"], r["size"]): r["seconds_per_step"] for r in rows}
    recipes = {(a.label, a.size): a.recipe for a in plan.arms}
    measured = plan.measured
    total = 0.0
    for at in left:
        recipe = recipes[at]
        # A forward is a third of a step. What is read: the curve, and every held-out window once for each scheme and pruning.
        windows = measured.points * 72 + measured.windows * (
            4 + len(measured.schemes) + len(measured.sparsities)
        )
        total += step[at] * (recipe.steps + windows / (2 * recipe.batch))
    return total / max(1, min(processes, len(left)))
