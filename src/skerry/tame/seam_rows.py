"""What methods on seams have in common: which seams they work on, and the rows that say what was done to each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.seams import Seam, Seams
from skerry.errors import NotPossible, UnknownOption, near_matches
from skerry.tame.reading import ChannelRange

KINDS = ("norm", "value", "up", "post-norm")
# Kind of seam -> what the names of its reasons begin or end with.
_REASONS = {
    "norm": ("norm.attn", "norm.mlp"),
    "value": ("v-o",),
    "up": ("up-down",),
    "post-norm": ("post-norm", "-attn", "-mlp"),
}
# Channels that are told one by one: the most changed, and as many others evenly chosen.
_TOLD = 8
POST_NORM = "post-norm blocks: the shortcut reads x * s, and no checkpoint has a place for that"


def parse_kinds(value: str | Sequence[str], method: str) -> tuple[str, ...]:
    """Kinds of seams from `norm+up`, or a sequence of them.

    Raises:
        UnknownOption: A kind that does not exist.
    """
    words = value.replace(",", "+").split("+") if isinstance(value, str) else list(value)
    for word in words:
        if word not in KINDS:
            near = near_matches(word, KINDS)
            raise UnknownOption(
                f"{method}: there is no kind of seam {word!r}{f'; did you mean {near}?' if near else ''}. Kinds are {', '.join(KINDS)}, "
                "joined by +"
            )
    return tuple(words)


def choose_seams(
    seams: Seams, kinds: Iterable[str], method: str, *, carry: str = "scale"
) -> tuple[list[Seam], list[str]]:
    """The seams that a method works on, and in words what it would have worked on.

    Raises:
        NotPossible: There is none, with the reasons.
    """
    kinds = tuple(kinds)
    chosen = seams.of(*kinds, carry=carry)
    notes = [
        f"{name}: left alone, {reason}"
        for name, reason in seams.missing.items()
        if any(
            word in name and not (kind == "norm" and "post" in name)
            for kind in kinds
            for word in _REASONS[kind]
        )
    ]
    notes += [
        f"{seam.name}: left alone, it carries no {carry}: {seam.cannot.get(carry, 'it is not declared')}"
        for seam in seams.of(*kinds)
        if carry not in seam.carries
    ]
    if not chosen:
        why = "; ".join(notes) or f"none of its seams is of the kind {' or '.join(kinds)}"
        has = ", ".join(sorted({s.kind for s in seams})) or "none"
        raise NotPossible(
            f"{method} changes the scale on seams of the kind {' or '.join(kinds)}, and this model has none that carries one ({why}). "
            f"It has seams of the kind: {has}; the option 'kinds' chooses among them"
        )
    return chosen, notes


def seam_row(
    seam: Seam,
    of: ChannelRange | None,
    *,
    scale: Float[Tensor, "free"] | None = None,
    loss_before: float | None = None,
    loss_after: float | None = None,
    candidates: int = 0,
    seconds: float = 0.0,
    skipped: str | None = None,
) -> dict[str, Any]:
    """A row of `seam_changes` for a change of the scale alone."""
    wide = None if scale is None else scale[seam.spread.to(scale.device)]
    return {
        "seam": seam.name,
        "kind": seam.kind,
        "layer": seam.layer,
        "site": str(seam.site.part),
        "threshold": None,
        "threshold_low": None,
        "scale_min": None if scale is None else float(scale.min()),
        "scale_max": None if scale is None else float(scale.max()),
        "num_scaled": 0 if scale is None else int((scale != 1).sum()),
        "shift_max": None,
        "range_before": None if of is None else of.width,
        "range_after": None if of is None else of.changed(scale=wide).width,
        "loss_before": loss_before,
        "loss_after": loss_after,
        "candidates": candidates,
        "seconds": seconds,
        "skipped": skipped,
    }


def channel_rows(seam: Seam, of: ChannelRange, scale: Float[Tensor, "free"]) -> list[dict[str, Any]]:
    """Rows of `channel_ranges`: the channels whose range changed the most, and others evenly chosen."""
    wide = scale[seam.spread.to(scale.device)].to(of.low)
    after = of.changed(scale=wide)
    most = (wide.log().abs()).topk(min(_TOLD, len(wide))).indices
    others = torch.linspace(0, len(wide) - 1, _TOLD, device=most.device).round().long()
    return [
        {
            "seam": seam.name,
            "site": str(seam.site.part),
            "layer": seam.layer,
            "channel": c,
            "low_before": float(of.low[c]),
            "high_before": float(of.high[c]),
            "low_after": float(after.low[c]),
            "high_after": float(after.high[c]),
        }
        for c in sorted(set(torch.cat([most, others]).tolist()))
    ]


def why_no_export(changed: Iterable[Seam]) -> str | None:
    """Why a checkpoint cannot hold changes of these seams; None where it can."""
    return POST_NORM if any(seam.kind == "post-norm" for seam in changed) else None
