"""Super weights: the single entries of down projections that make a block's largest output out of its largest input stay as they are.

    j = argmax_i |y_i|,  k = argmax_i |x_i W_ji|  at the token with the largest |x|,  y = W x + b        entry W_jk

Yu et al. 2024 (arXiv 2411.07191), section 3: the spikes of input and output tell the entry's place; there k = argmax_i |x_i|, which is the
same entry until that one is zeroed. Their spikes are read off a plot; here one is 50 x the median |x| of its site, |W_jk| is 10 x the median
|w|, and the one product x_k W_jk explains at least half of y_j (as `skerry.outliers.super_weights` has it). Then the entries are zeroed, the
text is read again, and so on until no more is found.

With the option `z` the other weights are clipped at mean|w| + z std|w| of their slice of the grid before they are rounded (section 4.2).
Kept entries count for no range. A checkpoint has one number format per map, so this cannot be exported.
Limit: z = 0 clips nothing; a model without such an entry is rounded to nearest.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.dense import Dense, dense_maps, replace_weights
from skerry.errors import NotPossible
from skerry.impact.quantize import by_group, fake_quantize, observe
from skerry.impact.scheme import TensorSpec
from skerry.outliers.super_weights import SHARE, SPIKE, WEIGHT
from skerry.tame.export_refuse import RUNTIME
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import check_between, take_options
from skerry.tame.reading import Ask, Reading, read_inputs

ROWS = 64
"""Tokens that medians are taken over."""


class Entry(NamedTuple):
    """One super weight.

    Attributes:
        row: Output channel.
        column: Input channel.
        weight: Its value.
        x: The input that it multiplies.
        y: The output that it makes.
    """

    row: int
    column: int
    weight: float
    x: float
    y: float


class Medians(NamedTuple):
    """Median |.| of what a map reads, gives, and weighs."""

    x: float
    y: float
    weight: float


def find(job: Job) -> Found:
    """The entries of all down projections."""
    options = take_options(
        job.options, "super-weights", spike=SPIKE, share=SHARE, weight=WEIGHT, rounds=5, z=0.0
    )
    check_between(options["z"], 0.0, float("inf"), "super-weights: option 'z'")
    downs = [d for d in dense_maps(job.anatomy) if "w.down" in d.pieces]
    if not downs:
        raise NotPossible("super weights are entries of down projections, and no block of this model has one")
    entries: dict[Dense, list[Entry]] = {}
    medians: dict[str, Medians] = {}
    for _ in range(options["rounds"]):
        readings = _read_without(job, downs, entries)
        new = 0
        for dense in downs:
            reading = readings[dense.name]
            if dense.name not in medians:
                medians[dense.name] = _medians(dense, reading)
            entry = crossing(dense, reading, entries.get(dense, []), medians[dense.name], options)
            if entry is not None:
                entries.setdefault(dense, []).append(entry)
                new += 1
        if not new:
            break
    found = Found()
    _keep(found, entries)
    if options["z"]:
        _clip(job, found, options["z"])
    return found


def _read_without(job: Job, downs: list[Dense], entries: dict[Dense, list[Entry]]) -> dict[str, Reading]:
    with ExitStack() as stack:
        for dense, found in entries.items():
            stack.enter_context(replace_weights({dense: _without(dense, found)}))
        return read_inputs(
            job.anatomy,
            downs,
            job.batches,
            Ask(num_rows=ROWS, spike=True),
            seed=job.seed,
            progress=job.progress,
            stage="super-weights: calibration",
        )


def _without(dense: Dense, entries: list[Entry]) -> Float[Tensor, "row column"]:
    weight = dense.weight.clone()
    for entry in entries:
        weight[entry.row, entry.column] = 0.0
    return weight


def _outputs(dense: Dense, weight: Tensor, rows: Tensor) -> Tensor:
    y = rows @ weight.to(rows).T
    return y if dense.bias is None else y + dense.bias.to(rows)


def _medians(dense: Dense, reading: Reading) -> Medians:
    rows = reading.rows
    if not len(rows):
        return Medians(float("inf"), float("inf"), float("inf"))
    return Medians(
        float(rows.abs().median()),
        float(_outputs(dense, dense.weight, rows).abs().median()),
        float(dense.weight.abs().float().median()),
    )


def crossing(
    dense: Dense, reading: Reading, known: list[Entry], medians: Medians, options: dict[str, float]
) -> Entry | None:
    """The entry that makes the largest output out of a large input; None where it is no super weight.

    Args:
        dense: The down projection.
        reading: What it reads, its entries found so far being 0.
        known: Those entries.
        medians: Of the map as it is.
        options: `spike`, `share`, `weight`.
    """
    if reading.spike is None:
        return None
    x = reading.spike.row
    weight = _without(dense, known)
    y = _outputs(dense, weight, x[None])[0]
    row = int(y.abs().argmax())
    column = int((x * weight[row].to(x)).abs().argmax())
    entry = Entry(row, column, float(weight[row, column]), float(x[column]), float(y[row]))
    spikes = abs(entry.x) >= options["spike"] * medians.x and abs(entry.y) >= options["spike"] * medians.y
    large = abs(entry.weight) >= options["weight"] * medians.weight
    explains = entry.y != 0 and entry.x * entry.weight / entry.y >= options["share"]
    return entry if spikes and large and explains else None


def _keep(found: Found, entries: dict[Dense, list[Entry]]) -> None:
    for dense, kept in entries.items():
        width = dense.weight.shape[1]
        found.keep_entries[dense.name] = torch.tensor(sorted(e.row * width + e.column for e in kept))
        found.notes += [
            f"{dense.name}[{e.row}, {e.column}] = {e.weight:.4g} stays: it turns {e.x:.4g} into {e.x * e.weight:.4g} of an output of {e.y:.4g}"
            for e in kept
        ]
    if entries:
        found.no_export = RUNTIME["entries in full precision"]
    else:
        found.notes.append(
            "no super weight: in no block does one product make the largest output of the largest input"
        )


def _clip(job: Job, found: Found, z: float) -> None:
    spec = job.scheme.weights
    if spec is None:
        raise NotPossible(
            "super-weights: option 'z' clips weights before they are rounded, and the scheme rounds none"
        )
    for dense in dense_maps(job.anatomy):
        weight = dense.weight.clone(memory_format=torch.contiguous_format)
        if dense.name in found.keep_entries:
            weight.view(-1)[found.keep_entries[dense.name]] = 0.0
        clipped = clip_at_z(weight, z, spec)
        found.weights[dense.name] = fake_quantize(clipped, spec)
        found.weight_grids[dense.name] = observe(clipped, spec)


def clip_at_z(weight: Float[Tensor, "row column"], z: float, spec: TensorSpec) -> Float[Tensor, "row column"]:
    """The weight with |w| <= mean|w| + z std|w| in every slice of its grid."""
    pieces = by_group(weight, spec)
    dims = (0, 1) if spec.granularity == "tensor" else (-1,)
    size = pieces.abs().float()
    limit = (size.mean(dims, keepdim=True) + z * size.std(dims, correction=0, keepdim=True)).to(weight.dtype)
    return torch.minimum(torch.maximum(pieces, -limit), limit).reshape(weight.shape)


METHOD = Method(
    name="super-weights",
    what="keeps the single entries of down projections that make a block's largest output in full precision",
    source="Yu et al. 2024, arXiv 2411.07191, sections 3 and 4.2",
    kind="runtime",
    find=find,
    cost=1,
    needs=("weights",),
)
