"""SmoothQuant: moves a share of each channel's range from what linear maps read into their weights.

    s_j = max|X_j|^a / max|W_j|^(1-a)        x' = x / s,  W' = W s

Xiao et al. 2022 (arXiv 2211.10438), equation 4; a = 0.5, or the option `alpha`. max|W_j| is over all readers of the tensor, routers and
experts included. `alpha=auto` tries 0.1, ..., 0.9 on every seam. With `guard` (on) a seam keeps s = 1 where that leaves the readers' rounded
outputs nearer (scale_search.py). Differs from OS+: no shift, and every channel is scaled. Differs from implementations that take
max - min for max|X|: a channel far from zero is scaled by its size, which is what a grid must hold.

Channels without a value in calibration get the smallest s, channels without a weight the largest.
Limits: a = 1 makes every channel's range 1; a = 0 every weight column's; with max|X_j|^a = max|W_j|^(1-a) nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.seams import Seam
from skerry.errors import UnknownOption
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import check_between, take_options
from skerry.tame.reading import ChannelRange, Reading
from skerry.tame.scale_search import ROWS, fill_dead, search_scales
from skerry.tame.seam_rows import choose_seams, parse_kinds

ALPHAS = tuple(k / 10 for k in range(1, 10))


def smooth_scale(
    x_max: Float[Tensor, "free"], w_max: Float[Tensor, "free"], alpha: float
) -> Float[Tensor, "free"]:
    """The scale x_max^alpha / w_max^(1 - alpha), float64."""
    x_max, w_max = x_max.double(), w_max.double()
    scale = x_max.pow(alpha) / w_max.pow(1 - alpha)
    return fill_dead(scale, small=x_max == 0, large=w_max == 0)


def weight_max(seam: Seam) -> Float[Tensor, "channel"]:
    """Largest |W_j| of every column over all readers."""
    found: Tensor | None = None
    for dense in seam.readers:
        weight = dense.weight
        here = torch.maximum(weight.amax(0), -weight.amin(0)).double()
        found = here if found is None else torch.maximum(found, here)
    assert found is not None
    return found


def find(job: Job) -> Found:
    """A scale for every seam of the chosen kinds."""
    options = take_options(
        job.options, "smoothquant", alpha="0.5", kinds="norm+post-norm", guard=True, tokens=ROWS
    )
    alphas = _alphas(options["alpha"])
    kinds = parse_kinds(options["kinds"], "smoothquant")
    seams, notes = choose_seams(job.seams, kinds, "smoothquant")

    def propose(seam: Seam, of: ChannelRange, _readings: dict[str, Reading]) -> list[Tensor]:
        x_max, w_max = (seam.pool(t.double()) for t in (of.abs_max, weight_max(seam).to(of.low.device)))
        return [smooth_scale(x_max, w_max, alpha) for alpha in alphas]

    guard = options["guard"] or len(alphas) > 1
    # s takes a root of the range: 1 % of max|x| is half a percent of s, far below what another text would change.
    found = search_scales(
        job,
        seams,
        propose,
        method="smoothquant",
        guard=guard,
        num_rows=options["tokens"],
        coarse=True,
    )
    found.notes[:0] = notes
    return found


def _alphas(value: Any) -> tuple[float, ...]:
    if value == "auto":
        return ALPHAS
    try:
        alpha = float(value)
    except (TypeError, ValueError):
        raise UnknownOption(
            f"smoothquant: option 'alpha' is a number from 0 to 1 or auto, not {value!r}"
        ) from None
    return (check_between(alpha, 0.0, 1.0, "smoothquant: option 'alpha'"),)


METHOD = Method(
    name="smoothquant",
    what="divides channels by max|x|^a / max|w|^(1-a) and multiplies the weights that read them",
    source="Xiao et al. 2022, arXiv 2211.10438, equation 4",
    kind="transform",
    find=find,
    cost=2,
    needs=("inputs",),
)
