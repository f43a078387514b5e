"""What the search says of each seam, as rows: numbers of the change, and channel ranges before and after for a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skerry.anatomy.seams import Seam
from skerry.tame.seam_search import Candidate
from skerry.tame.threshold import Ranges
from skerry.tame.transform import SeamChange

Row = dict[str, Any]
NUM_CHANGED, NUM_OTHERS = 64, 64
# A scale nearer to 1 moves nothing that a grid could show.
IS_ONE = 1e-3


def after(seam: Seam, change: SeamChange | None, ranges: Ranges) -> Ranges:
    """The ranges of the changed tensor."""
    if change is None:
        return ranges
    spread = seam.spread.to(ranges.low.device)
    shift, scale = (None if x is None else x[spread] for x in (change.shift, change.scale))
    return ranges.less(shift).over(scale)


def seam_row(
    seam: Seam,
    ranges: Ranges | None,
    found: Candidate | None,
    *,
    loss_before: float | None = None,
    loss_after: float | None = None,
    candidates: int = 0,
    seconds: float = 0.0,
    skipped: str | None = None,
) -> Row:
    """One row of the table `seam_changes`."""
    change = None if found is None or skipped else found.change
    shift, scale = (None, None) if change is None else (change.shift, change.scale)
    threshold = None if found is None or scale is None else found.threshold
    return {
        "seam": seam.name,
        "kind": seam.kind,
        "layer": seam.layer,
        "site": seam.site.part,
        "threshold": threshold,
        "threshold_low": None
        if threshold is None or found is None or found.ratio == 1
        else -threshold * found.ratio,
        "scale_min": None if scale is None else float(scale.min()),
        "scale_max": None if scale is None else float(scale.max()),
        "num_scaled": 0 if scale is None else int(((scale - 1).abs() > IS_ONE).sum()),
        "shift_max": None if shift is None else float(shift.abs().max()),
        "range_before": None if ranges is None else ranges.span,
        "range_after": None if ranges is None else after(seam, change, ranges).span,
        "loss_before": loss_before,
        "loss_after": loss_after,
        "candidates": candidates,
        "seconds": seconds,
        "skipped": skipped,
    }


def channel_rows(seam: Seam, ranges: Ranges, change: SeamChange | None) -> list[Row]:
    """Rows of the table `channel_ranges`: the channels that changed most, and others at equal distances."""
    if change is None or change.is_empty:
        return []
    new = after(seam, change, ranges)
    return [
        {
            "seam": seam.name,
            "site": seam.site.part,
            "layer": seam.layer,
            "channel": channel,
            "low_before": float(ranges.low[channel]),
            "high_before": float(ranges.high[channel]),
            "low_after": float(new.low[channel]),
            "high_after": float(new.high[channel]),
        }
        for channel in _shown(ranges, new)
    ]


def _shown(before: Ranges, now: Ranges) -> list[int]:
    moved = torch.maximum((before.low - now.low).abs(), (before.high - now.high).abs())
    most: Tensor = moved.topk(min(NUM_CHANGED, len(moved))).indices
    taken = set(most.tolist())
    others = [c for c in range(len(moved)) if c not in taken]
    step = max(1, len(others) / NUM_OTHERS)
    picked = {others[int(k * step)] for k in range(min(NUM_OTHERS, len(others)))}
    return sorted(taken | picked)
