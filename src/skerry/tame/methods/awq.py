"""AWQ: scales the channels whose inputs are large on average, so that rounding the weights hurts them less.

    s_j = mean|X_j|^a / sqrt(max_j s_j * min_j s_j)        a in {0, 1/20, ..., 19/20}, the one whose readers' rounded outputs are nearest

Lin et al. 2023 (arXiv 2306.00978), section 3.2; the normalisation is that of its code. On every seam: norms before all of their readers
(routers and experts included), v -> o, up -> down. a = 0 is s = 1, so a seam is never worse on its own loss than rounding to nearest.
Weights are rounded as the scheme says; inputs too where it rounds them, which the paper does not search for (option `weights_only` does
as the paper). Option `clip`: afterwards the range of every slice of a weight is shrunk by up to 45 %, to the least squared error of its
output on the drawn tokens (auto_clip of its code; query and key projections keep theirs).

Differs from SmoothQuant: the mean of |x| and not the maximum, a loss and not a rule, and weights' sizes do not matter.
Limit: inputs of the same mean everywhere give s = 1 for every a.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.seams import Seam
from skerry.errors import NotPossible
from skerry.impact.quantize import Grid, by_group, fake_quantize, observe
from skerry.impact.scheme import TensorSpec
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import take_options
from skerry.tame.reading import Ask, ChannelRange, Reading, read_inputs, seam_abs_mean
from skerry.tame.scale_search import ROWS, fill_dead, search_scales
from skerry.tame.seam_rows import choose_seams, parse_kinds
from skerry.tame.transform import folded

EXPONENTS = tuple(k / 20 for k in range(1, 20))
SHRINK = tuple(1 - k / 20 for k in range(10))
"""Shares of a weight slice's range, the whole first."""
# Rows of a weight whose errors are computed at once.
_ROWS_AT_ONCE = 512


def awq_scale(mean: Float[Tensor, "free"], exponent: float) -> Float[Tensor, "free"]:
    """The scale mean^a, normalised so that its largest and smallest value multiply to 1; float64."""
    mean = mean.double()
    none = torch.zeros_like(mean, dtype=torch.bool)
    scale = fill_dead(mean.pow(exponent), small=mean == 0, large=none)
    return scale / (scale.max() * scale.min()).sqrt()


def find(job: Job) -> Found:
    """A scale for every seam of the chosen kinds, and clipped weights where asked for."""
    options = take_options(
        job.options,
        "awq",
        kinds="norm+value+up+post-norm",
        weights_only=False,
        clip=False,
        tokens=ROWS,
    )
    seams, notes = choose_seams(job.seams, parse_kinds(options["kinds"], "awq"), "awq")

    def propose(seam: Seam, _of: ChannelRange, readings: dict[str, Reading]) -> list[Tensor]:
        mean = seam.pool(seam_abs_mean(seam, readings))
        return [awq_scale(mean, exponent) for exponent in EXPONENTS]

    found = search_scales(
        job,
        seams,
        propose,
        method="awq",
        num_rows=options["tokens"],
        mean=True,
        float_inputs=options["weights_only"],
    )
    found.notes[:0] = notes
    if options["clip"]:
        _clip_weights(job, found, options["tokens"])
    return found


def _clip_weights(job: Job, found: Found, num_rows: int) -> None:
    spec = job.scheme.weights
    if spec is None:
        raise NotPossible(
            f"awq: option 'clip' clips weights before they are rounded, and {job.scheme} rounds none"
        )
    with folded(job.anatomy, job.seams, found.changes):
        maps = [d for d in dense_maps(job.anatomy) if not {"w.q", "w.k"} & set(d.pieces)]
        readings = read_inputs(
            job.anatomy,
            maps,
            job.batches,
            Ask(num_rows=num_rows),
            seed=job.seed,
            progress=job.progress,
            stage="awq: ranges of weights",
        )
        for dense in maps:
            rows = readings[dense.name].rows
            if not len(rows):
                found.notes.append(
                    f"{dense.name}: range of its weights left alone, no drawn token reaches it"
                )
                continue
            found.weights[dense.name], found.weight_grids[dense.name] = clip_weight(dense, rows, spec)


def clip_weight(
    dense: Dense, rows: Float[Tensor, "token column"], spec: TensorSpec
) -> tuple[Float[Tensor, "row column"], Grid]:
    """The rounded weight whose ranges are shrunk to the least squared error of its output, and its grid.

    Args:
        dense: The map.
        rows: What it reads.
        spec: How its weight is rounded; the error is that of each of its slices alone.
    """
    weight = dense.weight.contiguous()
    pieces = by_group(weight, spec)
    dims = {"tensor": (0, 1)}.get(spec.granularity, (-1,))
    size = pieces.abs().amax(dims, keepdim=True)
    best = torch.full_like(size, torch.inf, dtype=torch.float64)
    limit = size.clone()
    for factor in SHRINK:
        clipped = torch.minimum(torch.maximum(pieces, -size * factor), size * factor).reshape(weight.shape)
        error = _slice_errors(fake_quantize(clipped, spec) - weight, rows, spec)
        better = error < best
        best = torch.where(better, error, best)
        limit = torch.where(better, size * factor, limit)
    clipped = torch.minimum(torch.maximum(pieces, -limit), limit).reshape(weight.shape)
    return fake_quantize(clipped, spec), observe(clipped, spec)


def _slice_errors(
    difference: Float[Tensor, "row column"], rows: Float[Tensor, "token column"], spec: TensorSpec
) -> Tensor:
    """Squared error of the outputs that each slice makes alone, in the shape of its grid, float64."""
    pieces = by_group(difference.to(rows), spec)
    if pieces.dim() == 2:
        errors = torch.cat(
            [(part @ rows.T).square_().sum(1, dtype=torch.float64) for part in pieces.split(_ROWS_AT_ONCE)]
        )
        return errors.sum()[None, None] if spec.granularity == "tensor" else errors[:, None]
    groups = rows.unflatten(1, pieces.shape[1:])
    parts = [
        torch.stack(
            [
                (part[:, k] @ groups[:, k].T).square_().sum(1, dtype=torch.float64)
                for k in range(part.shape[1])
            ],
            1,
        )
        for part in pieces.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(parts)[:, :, None]


METHOD = Method(
    name="awq",
    what="scales the channels with large mean |x| by the power that rounds the readers' outputs best",
    source="Lin et al. 2023, arXiv 2306.00978, section 3.2",
    kind="transform",
    find=find,
    cost=4,
    needs=("weights",),
)
