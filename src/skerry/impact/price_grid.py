"""The whole model quantized, scheme by scheme: perplexity, divergence and agreement, or cosine and neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skerry.anatomy.model import Anatomy
from skerry.corpus.batch import Batch
from skerry.errors import UnknownOption
from skerry.impact.calibrate import calibrate
from skerry.impact.evaluate import Evaluator, Scores
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.run import Progress, Silent

GRID = ("w8a8", "w8a8-tensor", "w6a6", "w4a8", "w4a4", "w4a16-g128", "kv8", "kv4")
ORIGINAL = "original"
Row = dict[str, Any]


def price_grid(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    schemes: Sequence[Scheme],
    *,
    calibration: Sequence[Batch] | None = None,
    lenient: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of the table `quantization_grid`: the original, then every scheme.

    Args:
        anatomy: The model; it is left as it was.
        batches: Inputs that are scored.
        schemes: What to quantize.
        calibration: Inputs on which static ranges are found; the same by default.
        lenient: A scheme that this model cannot have becomes a row with the reason and no numbers, instead of an error.
        seed: Of the bootstrap.
        progress: Told how far it is.

    Raises:
        UnknownOption: A group size that does not divide a width, unless lenient.
        BrokenModel: NaN in calibration, with input and map.
    """
    progress, calibration = progress or Silent(), batches if calibration is None else calibration
    refused = _refused(anatomy, schemes, lenient=lenient)
    progress.start("pricing schemes", 1 + len(schemes), "scheme")
    evaluator = Evaluator(anatomy, batches)
    rows = [_row(ORIGINAL, evaluator, evaluator.original, None, seed=seed)]
    progress.advance()
    for scheme in schemes:
        if scheme in refused:
            rows.append({"scheme": str(scheme), "outcome": evaluator.damage, "note": refused[scheme]})
        else:
            simulation = Simulation(scheme, grids=calibrate(anatomy, calibration, scheme))
            notes = simulation.notes(anatomy)
            if notes and scheme.weights is None and scheme.inputs is None:
                # Nothing of the scheme can be done: numbers of the untouched model would be a lie.
                rows.append({"scheme": str(scheme), "outcome": evaluator.damage, "note": "; ".join(notes)})
            else:
                scores = evaluator.score(simulation.open(anatomy))
                rows.append(_row(str(scheme), evaluator, scores, "; ".join(notes) or None, seed=seed))
        progress.advance()
    progress.done()
    return rows


def _refused(anatomy: Anatomy, schemes: Sequence[Scheme], *, lenient: bool) -> Mapping[Scheme, str]:
    """What the model cannot have, before any forward; static grids are not looked at, they are found later."""
    refused: dict[Scheme, str] = {}
    for scheme in schemes:
        try:
            Simulation(scheme).check(anatomy, calibrated=False)
        except UnknownOption as error:
            if not lenient:
                raise
            refused[scheme] = f"not measured: {error}"
    return refused


def _row(name: str, evaluator: Evaluator, scores: Scores, note: str | None, *, seed: int) -> Row:
    values = {n: getattr(scores, n) for n in ("perplexity", "kl", "top1", "cosine", "neighbours")}
    per_input = scores.per_input[evaluator.damage]
    row: Row = {
        "scheme": name,
        "outcome": evaluator.damage,
        "value": getattr(scores, evaluator.damage),
        **values,
        "num_samples": int(np.isfinite(per_input).sum()),
        "note": note,
    }
    if name != ORIGINAL:
        change = evaluator.change(scores, seed=seed)
        row |= {"change": change.value, "ci_low": change.low, "ci_high": change.high}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
