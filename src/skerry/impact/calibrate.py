"""Grids of inputs whose range is static: one pass over calibration text, every map's range kept as it grows.

    grid of a map = find_grid(range of all that it reads, spec)

A range is per tensor or per column, as the spec's observer chooses it (see observers.py). Padding counts for no range. An expert that no
calibration token reaches gets the range that the other experts of its block have together. Limit: a scheme with ranges at hand needs no
calibration, and nothing is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.asked import numbers
from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy, run
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, EmptyBatch
from skerry.impact.observers import Range, range_of
from skerry.impact.quantize import Grid, find_grid
from skerry.impact.rows import RowEdit, Rows, change_rows
from skerry.impact.scheme import Scheme, TensorSpec


def calibrate(
    anatomy: Anatomy,
    batches: Iterable[Batch],
    scheme: Scheme,
    *,
    maps: Sequence[Dense] | None = None,
    keep_columns: Mapping[str, Tensor] | None = None,
    keep_above: Mapping[str, float] | None = None,
    keep_positions: int = 0,
) -> dict[str, Grid]:
    """Static grids of what linear maps read, by name of the map; empty where the scheme's inputs are left alone or have ranges at hand.

    Args:
        anatomy: The model, untouched or as it will be when it is quantized.
        batches: The inputs to read, once.
        scheme: Its `inputs` say what is needed.
        maps: The maps; all by default.
        keep_columns: Channels that count for no range, as in `Simulation`.
        keep_above: Rows whose largest |x| is above the number count for no range, as in `Simulation`.
        keep_positions: First positions that count for no range, as in `Simulation`.

    Raises:
        BrokenModel: The model gives NaN; the input and the map are named.
        EmptyBatch: No token reaches a map.
    """
    spec = scheme.inputs
    maps = dense_maps(anatomy) if maps is None else maps
    if spec is None or spec.dynamic or not maps:
        return {}
    ranges = {d.name: range_of(spec) for d in maps}
    now: list[Batch] = []

    def reading(dense: Dense) -> RowEdit:
        columns = None if keep_columns is None else keep_columns.get(dense.name)
        above = None if keep_above is None else keep_above.get(dense.name)
        where = f"the input of {dense.name}"

        def read(x: Tensor, places: Rows | None) -> Tensor:
            counted = counted_rows(x, places, above=above, keep_positions=keep_positions)
            check_finite(x, places, dense, now[0])
            if columns is not None:
                counted = counted.clone()
                counted[:, numbers(columns, x.shape[1], what="channel", where=where)] = 0.0
            ranges[dense.name].update(counted)
            return x

        return read

    with change_rows(anatomy, {d: reading(d) for d in maps}):
        for batch in batches:
            now[:] = [batch]
            run(anatomy, batch.input_ids, batch.keep)
    _lend_ranges(maps, ranges)
    return {d.name: _grid(d, ranges[d.name], spec) for d in maps}


def counted_rows(
    x: Float[Tensor, "row channel"],
    places: Rows | None,
    *,
    above: float | None = None,
    keep_positions: int = 0,
) -> Float[Tensor, "counted channel"]:
    """The rows that are no padding, do not belong to the first positions, and are not above a size."""
    counts = torch.ones(len(x), dtype=torch.bool, device=x.device) if places is None else places.counts
    if keep_positions and places is not None:
        counts = counts & (places.position >= keep_positions)
    if above is not None:
        counts = counts & (x.abs().amax(-1) <= above)
    return x if bool(counts.all()) else x[counts]


def check_finite(x: Tensor, places: Rows | None, dense: Dense, batch: Batch) -> None:
    """Refuse NaN at a token that counts.

    Raises:
        BrokenModel: Naming the input, the block and the map.
    """
    bad = torch.isnan(x).any(-1)
    if places is not None:
        bad &= places.counts
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    where = (
        ""
        if places is None
        else f" in input {int(batch.sample[int(places.sample[row])])}, position {int(places.position[row])}"
    )
    block = "" if dense.layer is None else f" of block {dense.layer}"
    raise BrokenModel(
        f"calibration met NaN{where}: {dense.name}{block} reads it at {dense.reads.part}; `skerry scan` shows where the first one is"
    )


def _lend_ranges(maps: Sequence[Dense], ranges: dict[str, Range]) -> None:
    """An expert that was not reached gets what the other experts of the block read at the same place."""
    reached = {(d.layer, d.name) for d in maps if ranges[d.name].extremes is not None}
    for dense in maps:
        own = ranges[dense.name]
        if own.extremes is not None or dense.expert is None:
            continue
        key = (dense.layer, dense.reads.part)
        for other in maps:
            near = other.expert is not None and (other.layer, other.reads.part) == key
            if near and (other.layer, other.name) in reached:
                own.merge(ranges[other.name])


def _grid(dense: Dense, found: Range, spec: TensorSpec) -> Grid:
    try:
        low, high = found.result()
    except EmptyBatch as error:
        raise EmptyBatch(f"no token of the calibration text reaches {dense.name}; give more text") from error
    dtype, device = dense.parameter.dtype, dense.parameter.device
    return find_grid(low.to(device, dtype), high.to(device, dtype), spec)
