"""Outlier Suppression: the norm's gain moves into the weights that read it, and static ranges are clipped token by token.

    gamma migration        s_j = |gamma_j|:   x' = x / s,  W' = W s      the gain becomes its sign, the bias is divided too
    token-wise clipping    range = (low_q, high_q), the q quantiles over tokens of every token's minimum and maximum, with q and then the
                           place between two neighbouring q chosen for the least squared error of the readers' rounded outputs

Wei et al. 2022 (arXiv 2209.13325), sections 4.1 and 4.2. There the second, fine stage is gradient descent on the range; here it is a
search between the coarse stage's neighbours, which needs no gradient and starts from the same place. A gain of 0 keeps s = 1. The range is
clipped where the scheme has static inputs per tensor (option `clip`); ranges at hand have nothing to choose. With `guard` (on) a seam keeps
its gain where its readers' rounded outputs are nearer with it.

Differs from OS+: the scale is the gain, whatever the values are, and there is no shift.
Limits: gains of 1 move nothing; q = 1 is the range of the extremes, which is among those tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.seams import NormWriter, Seam
from skerry.errors import NotPossible
from skerry.impact.observers import upper_quantile
from skerry.impact.quantize import Grid, fake_quantize, find_grid
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import take_options
from skerry.tame.reading import Ask, ChannelRange, Reading, read_inputs
from skerry.tame.scale_search import ROWS, search_scales
from skerry.tame.seam_rows import choose_seams, parse_kinds
from skerry.tame.transform import folded

QUANTILES = (1.0, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8)
FINE = 8
"""Steps between two neighbouring quantiles."""


def gain_of(seam: Seam) -> Float[Tensor, "channel"]:
    """The gain that a norm multiplies by, float64."""
    assert isinstance(seam.writer, NormWriter)
    return getattr(seam.writer.module, seam.writer.key).detach().double() + seam.writer.plus


def migration(seam: Seam) -> Float[Tensor, "channel"]:
    """The scale |gamma|, and 1 where that is 0."""
    size = gain_of(seam).abs()
    return torch.where(size == 0, 1.0, size)


def find(job: Job) -> Found:
    """The gains of all norms before linear maps, and static ranges."""
    options = take_options(job.options, "os", kinds="norm+post-norm", clip=True, guard=True, tokens=ROWS)
    spec = job.scheme.inputs
    clips = options["clip"] and spec is not None and not spec.dynamic and spec.granularity == "tensor"
    try:
        seams, notes = choose_seams(job.seams, parse_kinds(options["kinds"], "os"), "os")
    except NotPossible as error:
        if not clips:
            raise
        seams, notes = [], [f"no gain was moved: {error}"]

    def propose(seam: Seam, _of: ChannelRange, _readings: dict[str, Reading]) -> list[Tensor]:
        return [migration(seam)]

    seams = [s for s in seams if isinstance(s.writer, NormWriter)]
    found = Found(rows={"seam_changes": [], "channel_ranges": []})
    if seams:
        found = search_scales(
            job, seams, propose, method="os", guard=options["guard"], num_rows=options["tokens"]
        )
    found.notes[:0] = notes
    if clips:
        _clip_ranges(job, found, options["tokens"])
    elif options["clip"]:
        found.notes.append(
            "token-wise clipping: nothing to clip, the scheme's inputs have no static range per tensor (e.g. w8a8-static)"
        )
    return found


def _clip_ranges(job: Job, found: Found, num_rows: int) -> None:
    spec = job.scheme.inputs
    assert spec is not None
    with folded(job.anatomy, job.seams, found.changes):
        maps = dense_maps(job.anatomy)
        readings = read_inputs(
            job.anatomy,
            maps,
            job.batches,
            Ask(num_rows=num_rows, tokens=True),
            seed=job.seed,
            progress=job.progress,
            stage="os: token-wise clipping",
        )
        shared: dict[int, list[Dense]] = {}
        for dense in maps:
            shared.setdefault(id(readings[dense.name]), []).append(dense)
        for group in shared.values():
            reading = readings[group[0].name]
            if not reading.num_rows:
                found.notes.append(f"{group[0].name}: range not chosen, no calibration token reaches it")
                continue
            low, high = clip_range(reading, group, job.scheme)
            grid = _grid(low, high, spec, group[0].parameter.dtype)
            found.grids.update(dict.fromkeys((d.name for d in group), grid))
            _tell(found, job, {d.name for d in group}, low, high)


def _tell(found: Found, job: Job, names: set[str], low: float, high: float) -> None:
    for row in found.rows["seam_changes"]:
        if names & {d.name for d in job.seams.named(row["seam"]).readers}:
            row["threshold"], row["threshold_low"] = high, low


def clip_range(reading: Reading, readers: Sequence[Dense], scheme: Scheme) -> tuple[float, float]:
    """The range of a static grid of one tensor with the least squared error of its readers' rounded outputs.

    Args:
        reading: With rows and the extremes of every token.
        readers: All quantized maps that read the tensor.
        scheme: How they are quantized.

    Returns:
        Smallest and largest value of the range.
    """
    spec = scheme.inputs
    assert spec is not None
    lows, highs = torch.cat(reading.token_low), torch.cat(reading.token_high)
    rows = reading.rows
    coarse = [
        (-float(upper_quantile(-lows[None], q)), float(upper_quantile(highs[None], q))) for q in QUANTILES
    ]
    if not len(rows):
        return coarse[0]
    weights = [d.weight.contiguous().to(rows) for d in readers]
    wanted = [rows @ w.T for w in weights]
    if scheme.weights is not None:
        weights = [fake_quantize(d.weight.contiguous(), scheme.weights).to(rows) for d in readers]

    def loss(range_: tuple[float, float]) -> float:
        rounded = fake_quantize(rows, spec, _grid(*range_, spec, rows.dtype))
        return sum(
            float((rounded @ w.T - y).square_().sum(dtype=torch.float64))
            for w, y in zip(weights, wanted, strict=True)
        )

    losses = [loss(r) for r in coarse]
    best = min(range(len(coarse)), key=losses.__getitem__)
    around = coarse[max(0, best - 1) : best + 2]
    fine = [
        tuple(a + (b - a) * k / FINE for a, b in zip(first, second, strict=True))
        for first, second in pairwise(around)
        for k in range(1, FINE)
    ]
    tried = [(losses[best], coarse[best]), *((loss((r[0], r[1])), (r[0], r[1])) for r in fine)]
    return min(tried, key=lambda pair: pair[0])[1]


def _grid(low: float, high: float, spec: TensorSpec, dtype: torch.dtype) -> Grid:
    ends = torch.tensor([[[low]], [[high]]], dtype=torch.float64).to(dtype)
    return find_grid(ends[0], ends[1], spec)


METHOD = Method(
    name="os",
    what="moves the gains of norms into the weights that read them, and clips static ranges token by token",
    source="Wei et al. 2022, arXiv 2209.13325, sections 4.1 and 4.2",
    kind="transform",
    find=find,
    cost=2,
    needs=("inputs",),
)
