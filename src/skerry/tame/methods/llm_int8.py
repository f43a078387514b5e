"""LLM.int8: input channels that hold a large value stay in full precision, with their weight columns; the rest is rounded.

    O = {j : max_t |X_tj| >= 6}        y = sum_{j in O} x_j W_j + Q_a(x_{not O}) Q_w(W_{not O})

Dettmers et al. 2022 (arXiv 2208.07339), section 3.2, equation 8; 6.0 is their threshold (option `threshold`). They find O anew in every
forward, here it is found in calibration, once. Kept channels count for no range. A checkpoint has one number format per map, so this
cannot be exported.

Differs from the transforms: the outliers stay where they are, and every map keeps some products in full precision.
Limits: a threshold of 0 keeps everything; above the largest |x| it is rounding to nearest.
"""

from __future__ import annotations

from skerry.anatomy.dense import dense_maps
from skerry.tame.export_refuse import RUNTIME
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import check_between, take_options
from skerry.tame.reading import read_inputs


def find(job: Job) -> Found:
    """The channels of every map."""
    options = take_options(job.options, "llm.int8", threshold=6.0)
    threshold = check_between(options["threshold"], 0.0, float("inf"), "llm.int8: option 'threshold'")
    maps = dense_maps(job.anatomy)
    readings = read_inputs(
        job.anatomy, maps, job.batches, seed=job.seed, progress=job.progress, stage="llm.int8: calibration"
    )
    found = Found()
    num_channels = 0
    for dense in maps:
        of = readings[dense.name].range
        if of is None:
            found.notes.append(f"{dense.name}: nothing kept, no calibration token reaches it")
            continue
        num_channels += len(of.low)
        columns = (of.abs_max >= threshold).nonzero()[:, 0]
        if len(columns):
            found.keep_columns[dense.name] = columns
    kept = sum(map(len, found.keep_columns.values()))
    if not kept:
        found.notes.append(f"no input channel reaches {threshold:g}: this is rounding to nearest")
        return found
    found.notes.append(
        f"{kept} of {num_channels} input channels ({kept / num_channels:.1%}) of {len(found.keep_columns)} of {len(maps)} maps stay in full precision"
    )
    found.no_export = RUNTIME["columns in full precision"]
    return found


METHOD = Method(
    name="llm.int8",
    what="keeps input channels that hold |x| >= 6 in full precision, with their weight columns",
    source="Dettmers et al. 2022, arXiv 2208.07339, section 3.2, equation 8",
    kind="runtime",
    find=find,
    cost=1,
    needs=("inputs",),
)
