"""Held-out inputs and the untouched model: what every pipeline is judged by."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from skerry.anatomy.model import Anatomy
from skerry.anatomy.resolve import resolve
from skerry.corpus.batch import Batch
from skerry.impact.calibrate import calibrate
from skerry.impact.evaluate import Evaluator, Scores
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.tame.method import Row
from skerry.tame.pipeline import Tamed

FLOAT = "float"


class HeldOut:
    """Scores changed and quantized models on inputs that no method has seen.

    Args:
        anatomy: The untouched model.
        batches: Held-out inputs.
        calibration: Inputs for static grids of the untouched model.
        own_copy: Keep a copy of the model: needed where a pipeline changes the head, or where several begin from the original.
        seed: Of the intervals, and the seed of the calibration in the rows.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        batches: Sequence[Batch],
        calibration: Sequence[Batch],
        *,
        own_copy: bool = False,
        seed: int = 0,
    ) -> None:
        self.anatomy = resolve(copy.deepcopy(anatomy.model)) if own_copy else anatomy
        self.batches, self.calibration, self.seed = batches, calibration, seed
        self._evaluators: dict[tuple[tuple[int, ...], int], Evaluator] = {}
        self.evaluator = self._for(())

    def _for(self, prefix: tuple[int, ...], skip: int = 0) -> Evaluator:
        if (prefix, skip) not in self._evaluators:
            self._evaluators[prefix, skip] = Evaluator(self.anatomy, self.batches, prefix=prefix, skip=skip)
        return self._evaluators[prefix, skip]

    def fresh(self) -> Anatomy:
        """A copy of the untouched model, to be changed."""
        return resolve(copy.deepcopy(self.anatomy.model))

    def original(self) -> Row:
        """The untouched model."""
        return self._row("none", FLOAT, self.evaluator.original)

    def rounded(self, scheme: Scheme) -> Row:
        """The untouched model, quantized by rounding to nearest; it must still be untouched."""
        grids = calibrate(self.anatomy, self.calibration, scheme)
        scores = self.evaluator.score(Simulation(scheme, grids=grids).open(self.anatomy))
        return self._row("none", str(scheme), scores)

    def changed(self, tamed: Tamed) -> Row:
        """The changed model before quantization: what rounding of the folded weights costs."""
        scores = self._for((), tamed.skip).score_model(tamed.anatomy)
        return self._row(tamed.name, FLOAT, scores, tamed)

    def quantized(self, tamed: Tamed) -> Row:
        """The changed model, quantized."""
        evaluator = self._for(tamed.found.prefix, tamed.skip)
        with tamed.simulation.open(tamed.anatomy):
            scores = evaluator.score_model(tamed.anatomy)
        return self._row(tamed.name, str(tamed.scheme), scores, tamed)

    def _row(self, method: str, scheme: str, scores: Scores, tamed: Tamed | None = None) -> Row:
        damage = self.evaluator.damage
        # A model that does not read the first tokens is compared on those behind them.
        change = self._for((), 0 if tamed is None else tamed.skip).change(scores, seed=self.seed)
        notes = tamed.found.notes if tamed is not None else []
        return {
            "method": method,
            "scheme": scheme,
            "seed": self.seed,
            "outcome": damage,
            "value": _finite(getattr(scores, damage)),
            "change": _finite(change.value),
            "ci_low": _finite(change.low),
            "ci_high": _finite(change.high),
            **{k: _finite(getattr(scores, k)) for k in ("perplexity", "kl", "top1", "cosine", "neighbours")},
            "num_samples": sum(len(b.input_ids) for b in self.batches),
            "seconds": None if tamed is None else tamed.seconds,
            "chosen": False,
            "note": "; ".join(notes) or None,
        }


def _finite(x: Any) -> float | None:
    return None if x is None or not math.isfinite(x) else float(x)


def damage_of(row: Row) -> float:
    """What a row costs against the original; infinite where it is no number."""
    change = row.get("change")
    return math.inf if change is None else float(change)
