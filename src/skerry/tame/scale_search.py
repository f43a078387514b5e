"""Chooses a scale for every seam among some that a method proposes: the one whose readers' rounded outputs are nearest, or none.

    s* = argmin over s in {1, proposed} of loss(s)      (loss: see reader_error.py)

s = 1 is always among them, so no seam is made worse on its own loss than rounding to nearest leaves it. Without a guard the first proposal
is taken unseen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.dense import dense_maps
from skerry.anatomy.pages import give_back, let_go
from skerry.anatomy.seams import Seam
from skerry.tame.method import Found, Job
from skerry.tame.reader_error import ReaderError
from skerry.tame.reading import Ask, ChannelRange, Reading, read_inputs, seam_range
from skerry.tame.seam_rows import channel_rows, seam_row, why_no_export
from skerry.tame.transform import SeamChange

NOT_REACHED = "no calibration token reaches it"
ROWS = 256
"""Tokens on which losses are computed: enough that their mean is within some percent, few enough that rounding the weights costs most."""

Propose = Callable[[Seam, ChannelRange, dict[str, Reading]], Sequence[Float[Tensor, "free"]]]


def search_scales(
    job: Job,
    seams: Sequence[Seam],
    propose: Propose,
    *,
    method: str,
    guard: bool = True,
    num_rows: int = ROWS,
    mean: bool = False,
    float_inputs: bool = False,
    coarse: bool = False,
) -> Found:
    """Read what the seams' readers read, in one pass, and choose a scale for each seam.

    Args:
        job: The model and the text.
        seams: The seams.
        propose: Scales of a seam.
        method: Name, for the listener.
        guard: Compare losses; otherwise the first proposal is taken.
        num_rows: Tokens on which losses are computed.
        mean: Whether proposals need mean |x|.
        float_inputs: The loss of rounding the weights alone.
        coarse: Proposals need ranges to a percent only.
    """
    maps = list({d.name: d for seam in seams for d in seam.readers}.values())
    readings = read_inputs(
        job.anatomy,
        maps,
        job.batches,
        Ask(num_rows=num_rows if guard else 0, mean=mean, coarse=coarse),
        seed=job.seed,
        progress=job.progress,
        stage=f"{method}: calibration",
    )
    quantized = frozenset(d.name for d in dense_maps(job.anatomy))
    found = Found(rows={"seam_changes": [], "channel_ranges": []})
    changed: list[Seam] = []
    job.progress.start(f"{method}: scales", len(seams), "seam")
    for seam in seams:
        start = time.perf_counter()
        of = seam_range(seam, readings)
        if of is None:
            found.rows["seam_changes"].append(seam_row(seam, None, skipped=NOT_REACHED))
            found.notes.append(f"{seam.name}: left alone, {NOT_REACHED}")
            job.progress.advance()
            continue
        proposals = propose(seam, of, readings)
        error = (
            ReaderError(seam, readings, job.scheme, quantized, float_inputs=float_inputs) if guard else None
        )
        scale, before, after = _best(error, proposals)
        skipped = None if scale is not None else _why(before, after)
        found.rows["seam_changes"].append(
            seam_row(
                seam,
                of,
                scale=scale,
                loss_before=before,
                loss_after=before if skipped else after,
                candidates=len(proposals) + 1 if guard else 1,
                seconds=time.perf_counter() - start,
                skipped=skipped,
            )
        )
        if scale is not None:
            changed.append(seam)
            found.changes.append(SeamChange(seam.name, scale=scale))
            found.rows["channel_ranges"] += channel_rows(seam, of, scale)
        else:
            found.notes.append(f"{seam.name}: left alone, {skipped}")
        let_go(d.parameter.detach() for d in seam.readers)
        job.progress.advance()
    give_back()
    job.progress.done()
    found.no_export = why_no_export(changed)
    return found


def _best(
    error: ReaderError | None, proposals: Sequence[Tensor]
) -> tuple[Tensor | None, float | None, float | None]:
    if error is None:
        return proposals[0], None, None
    before = error()
    if not error.num_values:
        return None, before, None
    losses = [error(scale=s) for s in proposals]
    best = min(range(len(losses)), key=losses.__getitem__)
    return (proposals[best] if losses[best] < before else None), before, losses[best]


def _why(before: float | None, after: float | None) -> str:
    if after is None:
        return "no token drawn for the losses reaches a reader that is quantized"
    return f"its readers' outputs are nearest as they are (mean squared error {before:.3g}, at best {after:.3g} with a scale)"


def fill_dead(scale: Float[Tensor, "free"], *, small: Tensor, large: Tensor) -> Float[Tensor, "free"]:
    """A scale whose formula gives 0, infinity or NaN in some channels, made positive.

    Args:
        scale: By the formula.
        small: Channels that were 0 in calibration. They get the smallest scale of the others: their weights then widen no grid.
        large: Channels that no reader weighs. They get the largest: their values then widen no grid.

    Limit: without a channel that is neither, all scales are 1.
    """
    live = ~(small | large)
    if not bool(live.any()):
        return torch.ones_like(scale)
    scale = torch.where(large, scale[live].max(), scale)
    return torch.where(small & ~large, scale[live].min(), scale)
