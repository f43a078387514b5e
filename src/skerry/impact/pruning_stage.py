"""The stage `pruning` of a run: loss against sparsity for every method, and what outliers do to each method's choice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from skerry.anatomy.dense import dense_maps
from skerry.anatomy.model import Anatomy
from skerry.causes.bootstrap import bootstrap
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch
from skerry.impact.evaluate import Evaluator, Scores
from skerry.impact.prune import Calibration, Pruning, find_pruning
from skerry.impact.pruning_conflict import conflict_rows, model_thresholds
from skerry.impact.pruning_scores import METHODS
from skerry.measure.gram import column_norms
from skerry.run.progress import Progress, Silent

DEFAULT_METHODS = ("magnitude", "magnitude-global", "wanda", "owl", "sparsegpt", "random")
SPARSITIES = (0.3, 0.5, 0.7)
# Tokens of calibration: a Gram of 4,096 channels has rank enough, and SparseGPT's forwards stay short on a processor.
CALIBRATION_TOKENS = 8192
# Means over inputs, not over tokens.
_BY_INPUT = ("cosine", "neighbours")
SAME_INPUTS = "one input only, so scores were calibrated on the input that they were measured on"
Rows = dict[str, list[dict[str, Any]]]


class Halves(NamedTuple):
    """Inputs that scores read, and inputs that the cost is measured on.

    Attributes:
        calibration: Half of the inputs, up to 8,192 tokens.
        evaluation: The other inputs.
        note: What the reader must know.
    """

    calibration: list[Batch]
    evaluation: list[Batch]
    note: str | None


def price_pruning(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    sparsities: Sequence[float] = SPARSITIES,
    calibration: Sequence[Batch] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Rows:
    """Prune by every method to every sparsity, and measure; the model is as before afterwards.

    Args:
        anatomy: The model.
        batches: Inputs; half of them calibrate and the others measure, unless there are inputs for calibration.
        methods: Names of `impact.pruning_scores.METHODS`; `random` is the control.
        sparsities: Shares removed.
        calibration: Inputs for calibration; then all `batches` measure.
        seed: Of the halves, the control and the intervals.
        progress: Told about every pruning.

    Returns:
        Rows of the tables `pruning` and `pruning_conflict`.

    Raises:
        EmptyBatch: No input.
    """
    halves = (
        Halves(list(calibration), list(batches), None)
        if calibration is not None
        else split_inputs(batches, seed=seed)
    )
    progress = progress or Silent()
    maps = dense_maps(anatomy)
    norms = column_norms(anatomy, halves.calibration, maps)
    settings = Calibration(halves.calibration, norms=norms, seed=seed)
    evaluator = Evaluator(anatomy, halves.evaluation)
    rows: Rows = {"pruning": [], "pruning_conflict": []}
    progress.start("pruning", len(methods) * len(sparsities), "pruning")
    for method, sparsity in itertools.product(methods, sparsities):
        common = (
            model_thresholds(anatomy, maps, norms, sparsity) if METHODS[method].scope == "model" else None
        )
        look = partial(
            conflict_rows,
            anatomy,
            norms=norms,
            method=method,
            sparsity=sparsity,
            block=settings.block,
            common=common,
        )
        found = find_pruning(
            anatomy,
            method,
            sparsity,
            settings,
            maps=maps,
            on_map=lambda chosen, look=look: rows["pruning_conflict"].extend(look(chosen)),
        )
        scores = evaluator.score(found.open())
        rows["pruning"] += [{**row, "note": halves.note} for row in _outcomes(evaluator, found, scores, seed)]
        progress.advance()
    progress.done()
    return rows


def _outcomes(evaluator: Evaluator, found: Pruning, scores: Scores, seed: int) -> Iterator[dict[str, Any]]:
    """One row per measure."""
    for outcome, after in scores.per_input.items():
        before = evaluator.original.per_input[outcome]
        weights = None if outcome in _BY_INPUT else evaluator.weights
        change = bootstrap(after - before, weights, seed=seed)
        yield {
            "method": found.method,
            "scope": METHODS[found.method].scope,
            "sparsity": found.sparsity,
            "reached": found.reached,
            "outcome": outcome,
            "value": getattr(scores, outcome),
            "change": change.value,
            "ci_low": change.low,
            "ci_high": change.high,
            "num_samples": int(np.isfinite(after).sum()),
        }


def split_inputs(batches: Sequence[Batch], *, seed: int, tokens: int = CALIBRATION_TOKENS) -> Halves:
    """Draw half of the inputs for calibration, up to so many tokens; the others are for measuring.

    Args:
        batches: Inputs.
        seed: Of the draw.
        tokens: Calibration ends with the input that reaches so many.

    Raises:
        EmptyBatch: No input.
    """
    num = sum(len(b.input_ids) for b in batches)
    if not num:
        raise EmptyBatch("nothing to prune by: no input was given")
    if num == 1:
        return Halves(list(batches), list(batches), SAME_INPUTS)
    drawn = set(np.random.default_rng(seed).permutation(num)[: num // 2].tolist())
    left, start = tokens, 0
    calibration, evaluation = [], []
    for batch in batches:
        mine = torch.tensor([start + i in drawn for i in range(len(batch.input_ids))])
        start += len(mine)
        evaluation += _rows_of(batch, ~mine)
        # Inputs whose predecessors already reach the number of tokens are left out.
        lengths = torch.where(mine, batch.keep.sum(1).cpu(), 0)
        wanted = mine & (lengths.cumsum(0) - lengths < left)
        left -= int(lengths[wanted].sum())
        calibration += _rows_of(batch, wanted)
    return Halves(calibration, evaluation, None)


def _rows_of(batch: Batch, chosen: Bool[Tensor, "sample"]) -> list[Batch]:
    """Some inputs of a batch, as a batch; none where none is chosen."""
    if not bool(chosen.any()):
        return []
    return [Batch(batch.input_ids[chosen], batch.keep[chosen], batch.sample[chosen])]
