"""Several pipelines at several schemes on one model: the table by which methods are compared, and what a transform costs at run time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from skerry.anatomy.model import Anatomy, run
from skerry.corpus.batch import Batch
from skerry.errors import NotPossible
from skerry.impact.scheme import Scheme
from skerry.run import Progress, Silent
from skerry.tame.document import equivalence_rows
from skerry.tame.held_out import HeldOut
from skerry.tame.method import Found, Job, Method, Row
from skerry.tame.pipeline import Setting, Tamed, run_pipeline, usable_seams
from skerry.tame.register import parse_pipeline

# What the comparison of the literature needs: nothing, clipping, scale alone, shift and scale as published and in full.
PIPELINES = ("clip", "smoothquant", "os+published", "os+")
SCHEMES = ("w8a8-tensor", "w6a6-tensor", "w4a4-tensor")
ROUNDS = 5


def compare_methods(
    anatomy: Anatomy,
    calibration: Sequence[Batch],
    judging: Sequence[Batch],
    *,
    pipelines: Sequence[str] = PIPELINES,
    schemes: Sequence[str] = SCHEMES,
    seed: int = 0,
    tokenizer: Any = None,
    progress: Progress | None = None,
    told: Callable[[Row], None] = lambda _row: None,
) -> dict[str, list[Row]]:
    """Rows for the tables `methods`, `seam_changes`, `channel_ranges`, `equivalence` and `overhead`; the model is left as it is.

    Args:
        anatomy: The untouched model; it is copied once, and once more per pipeline.
        calibration: Inputs that methods see.
        judging: Held-out inputs.
        pipelines: Names of pipelines; rounding to nearest is always there.
        schemes: How the model is quantized.
        seed: That of the inputs.
        tokenizer: For methods that name tokens.
        progress: Told how far it is.
        told: Told each row as soon as it is there.
    """
    progress = progress or Silent()
    held_out = HeldOut(anatomy, judging, calibration, own_copy=True, seed=seed)
    rows: dict[str, list[Row]] = {"methods": [held_out.original()], "equivalence": [], "overhead": []}
    progress.start("comparing methods", len(schemes) * (1 + len(pipelines)), "model")
    for text in schemes:
        scheme = Scheme.parse(text)
        rows["methods"].append(held_out.rounded(scheme))
        told(rows["methods"][-1])
        progress.advance()
        for name in pipelines:
            setting = Setting(held_out.fresh(), calibration, scheme, seed=seed, tokenizer=tokenizer)
            try:
                tamed = run_pipeline(setting, parse_pipeline(name))
            except NotPossible as error:
                rows["methods"].append(
                    {"method": name, "scheme": str(scheme), "seed": seed, "chosen": False, "note": str(error)}
                )
            else:
                if text == schemes[0]:
                    _first(rows, held_out, tamed)
                rows["methods"].append(held_out.quantized(tamed))
            told(rows["methods"][-1])
            progress.advance()
    progress.done()
    return rows


def _first(rows: dict[str, list[Row]], held_out: HeldOut, tamed: Tamed) -> None:
    """What is told of one scheme only: the changes of a pipeline, its proof, and its cost at run time."""
    for table in ("seam_changes", "channel_ranges"):
        rows.setdefault(table, []).extend(tamed.found.rows.get(table, []))
    if tamed.equivalence:
        rows["equivalence"] += equivalence_rows(tamed)
        rows["methods"].append(held_out.changed(tamed))
        rows["overhead"].append(overhead(held_out.anatomy, tamed, held_out.batches[0]))


@torch.no_grad()
def overhead(original: Anatomy, tamed: Tamed, batch: Batch, *, rounds: int = ROUNDS) -> Row:
    """Time of a forward of the changed float model beside the original's: best of several, taken in turn."""
    best = {"before": float("inf"), "after": float("inf")}
    small = Batch(batch.input_ids[:8], batch.keep[:8], batch.sample[:8])
    pair = {"before": original, "after": tamed.anatomy}
    for anatomy in pair.values():
        run(anatomy, small.input_ids, small.keep)
    for _ in range(rounds):
        for name, anatomy in pair.items():
            start = time.perf_counter()
            run(anatomy, small.input_ids, small.keep)
            best[name] = min(best[name], time.perf_counter() - start)
    return {
        "method": tamed.name,
        "seconds_before": best["before"],
        "seconds_after": best["after"],
        "parameters_before": sum(p.numel() for p in original.model.parameters()),
        "parameters_after": sum(p.numel() for p in tamed.anatomy.model.parameters()),
        "operations_added": tamed.operations_added,
    }


def parts_of_os_plus(held_out: HeldOut, setting: Setting) -> list[Row]:
    """Rows for the table `parts`: what each part of Outlier Suppression+ brings, each search folded into a copy and judged.

    Args:
        held_out: Judges; it must have its own copy of the untouched model.
        setting: Calibration and scheme; its model is not used.
    """
    from skerry.tame.ablation import Priced, ablate

    evaluator, anatomy = held_out.evaluator, held_out.fresh()

    def price(found: Found) -> Priced:
        given = Method("os+", "what was found", "", "transform", lambda _job: found)
        tamed = run_pipeline(replace(setting, anatomy=held_out.fresh()), [given])
        with tamed.simulation.open(tamed.anatomy):
            scores = evaluator.score_model(tamed.anatomy)
        damage = evaluator.damage
        return Priced(float(getattr(scores, damage)), scores.per_input[damage], evaluator.weights)

    seams = usable_seams(anatomy, setting)
    job = Job(anatomy, seams, setting.batches, setting.scheme, seed=setting.seed)
    found = {"scheme": str(setting.scheme), "outcome": evaluator.damage}
    return [{**found, **row} for row in ablate(job, price, seed=setting.seed)]


__all__ = ["PIPELINES", "SCHEMES", "compare_methods", "overhead", "parts_of_os_plus"]
