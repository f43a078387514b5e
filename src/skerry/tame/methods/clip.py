"""Naive clipping: what every linear map reads is cut off at a quantile of its |x|. The baseline that fails.

    x' = min(max(x, -c), c)        c = quantile of |x| over all calibration tokens and channels (option `quantile`, 0.999)

It makes grids fine and destroys what systematic outliers are for: the values that are cut are the ones the model reads on purpose (Wei et
al. 2022, arXiv 2209.13325, section 3.2, tell clipping that hurts from clipping that does not). The quantile is within 1 %.
A static grid can hold the clipped range, a range at hand cannot, so this is not exported.
Limit: quantile 1 clips nothing in calibration.
"""

from __future__ import annotations

from skerry.anatomy.dense import dense_maps
from skerry.tame.export_refuse import RUNTIME
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import check_between, take_options
from skerry.tame.reading import Ask, read_inputs


def find(job: Job) -> Found:
    """The range of every map's input."""
    options = take_options(job.options, "clip", quantile=0.999)
    quantile = check_between(options["quantile"], 0.0, 1.0, "clip: option 'quantile'")
    maps = dense_maps(job.anatomy)
    readings = read_inputs(
        job.anatomy,
        maps,
        job.batches,
        Ask(sizes=True),
        seed=job.seed,
        progress=job.progress,
        stage="clip: calibration",
    )
    found = Found(no_export=RUNTIME["clipping of inputs"])
    for dense in maps:
        reading = readings[dense.name]
        if reading.range is None:
            found.notes.append(f"{dense.name}: not clipped, no calibration token reaches it")
            continue
        # The sketch's bucket may end above the largest value.
        most = float(reading.range.abs_max.max())
        limit = most if quantile == 1.0 else min(reading.sizes.result(quantile), most)
        if limit > 0:
            found.clip[dense.name] = (-limit, limit)
    return found


METHOD = Method(
    name="clip",
    what="cuts off what linear maps read at a quantile of |x|; the baseline that fails",
    source="Wei et al. 2022, arXiv 2209.13325, section 3.2",
    kind="runtime",
    find=find,
    cost=1,
    needs=("inputs",),
)
