"""GPTQ: weights are rounded column by column, and the columns that are left make up for the error (see `skerry.tame.gptq`).

    w_R = w0_R + H_RR^-1 H_RF (w0_F - q_F)        F the columns done, R the rest, H = X X^T + damping

Frantar et al. 2022 (arXiv 2210.17323), section 3. Block by block, each on what the rounded blocks before it give; what a killed run had
finished is taken as it is. Limit: inputs whose columns are orthogonal give rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from skerry.impact.calibrate import calibrate
from skerry.impact.quantize import Grid
from skerry.impact.sparsegpt import BLOCK, DAMPING
from skerry.tame.gptq import GptqResult, gptq_model
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import check_between, take_options

_PARTS = ("weight", "scale", "zero_point", "error", "error_nearest", "is_nearest")


def find(job: Job) -> Found:
    """Rounded weights of all maps, with their grids."""
    options = take_options(job.options, "gptq", damping=DAMPING, act_order=False, block=BLOCK)
    check_between(options["damping"], 0.0, float("inf"), "gptq: option 'damping'")
    check_between(options["block"], 1, float("inf"), "gptq: option 'block'")
    results = gptq_model(
        job.anatomy,
        job.batches,
        job.scheme,
        # Blocks hand on what rounded inputs give; the ranges that are used in the end are those of the whole pipeline.
        grids=calibrate(job.anatomy, job.batches, job.scheme),
        damping=options["damping"],
        act_order=options["act_order"],
        block=options["block"],
        progress=job.progress,
        on_block=lambda layer, done: job.remember(layer, _state(done)),
        done=[(layer, _results(state)) for layer, state in job.recalled.items()],
    )
    found = Found(
        weights={name: r.weight for name, r in results.items()},
        weight_grids={name: r.grid for name, r in results.items()},
    )
    error, nearest = (
        sum(float(getattr(r, k).sum()) for r in results.values()) for k in ("error", "error_nearest")
    )
    rows, kept = (sum(int(getattr(r.is_nearest, k)()) for r in results.values()) for k in ("numel", "sum"))
    share = f"{error / nearest:.3f} of" if nearest else "like"
    found.notes.append(
        f"squared error of the maps' outputs in calibration: {share} rounding to nearest; {kept} of {rows} rows are rounded to nearest"
    )
    return found


def _state(results: Mapping[str, GptqResult]) -> dict[str, Tensor]:
    return {
        f"{name}|{part}": getattr(r.grid, part, None) if part in Grid._fields else getattr(r, part)
        for name, r in results.items()
        for part in _PARTS
    }


def _results(state: Mapping[str, Tensor]) -> dict[str, GptqResult]:
    names = dict.fromkeys(key.rpartition("|")[0] for key in state)
    found = {}
    for name in names:
        weight, scale, zero_point, error, nearest, is_nearest = (state[f"{name}|{part}"] for part in _PARTS)
        found[name] = GptqResult(weight, Grid(scale, zero_point), error, nearest, is_nearest)
    return found


METHOD = Method(
    name="gptq",
    what="rounds weights column by column; the columns that are left make up for the error",
    source="Frantar et al. 2022, arXiv 2210.17323, section 3",
    kind="weights",
    find=find,
    cost=5,
    needs=("weights",),
)
