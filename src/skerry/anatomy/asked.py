"""Checks what a caller asks of a model before the model runs: sites that it has, numbers that lie within a site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import ACTIVATION_PARTS, STREAMED, Site
from skerry.errors import UnknownOption, UnknownSite, near_matches

# An activation's width is an axis of a weight: part to (weight, axis), the first that the block has.
_WIDTHS = {
    "attn.in": [("w.q", 1)],
    "attn.q": [("w.q", 0)],
    "attn.k": [("w.k", 0)],
    "attn.v": [("w.v", 0)],
    "attn.mix": [("w.o", 1)],
    "attn.out": [("w.o", 0)],
    "attn.add": [("w.o", 0)],
    "mlp.in": [("w.up", 1), ("w.router", 1)],
    "mlp.router": [("w.router", 0)],
    "mlp.gate": [("w.gate", 0)],
    "mlp.up": [("w.up", 0)],
    "mlp.down.in": [("w.down", 1)],
    "mlp.out": [("w.down", 0), ("w.router", 1)],
    "mlp.add": [("w.down", 0), ("w.router", 1)],
}


def missing(anatomy: Anatomy, site: Site, known: Iterable[Site]) -> UnknownSite:
    """Why the model has no such site, and what comes near."""
    name, last = type(anatomy.model).__name__, anatomy.dims.num_layers - 1
    kind = "weight" if site.is_weight else "activation"
    sites = sorted(known)
    if sites and site.is_weight != sites[0].is_weight:
        asked, needed = ("a weight", "an activation") if site.is_weight else ("an activation", "a weight")
        return UnknownSite(f"{site} is {asked}; {needed} is needed here")
    same_part = [s for s in sites if s.part == site.part]
    if site.layer is None and same_part and same_part[0].layer is not None:
        return UnknownSite(f"{site} exists in every block; write which one, for example {same_part[0]}")
    if site.layer is not None and same_part and same_part[0].layer is None:
        return UnknownSite(f"{site.part} belongs to no block; write {site.part} without a number")
    if site.layer is not None and site.layer > last:
        return UnknownSite(f"{name} has no block {site.layer}; its blocks are 0 to {last}")
    in_block = [s for s in sites if s.layer == site.layer and s.expert is None]
    routed = [s for s in same_part if s.layer == site.layer and s.expert is not None]
    if routed:
        return UnknownSite(
            f"{name} has no {kind} {site}; {site.layer}.{site.part} exists once per expert, {routed[0]} to {routed[-1]}"
        )
    near = near_matches(str(site), [str(s) for s in same_part or in_block])
    hint = f"; did you mean {near}?" if near else "."
    return UnknownSite(
        f"{name} has no {kind} {site}{hint} It has {', '.join(map(str, in_block or sites[:8]))}"
    )


def width_of(anatomy: Anatomy, site: Site) -> int | None:
    """Channels of an activation site, read from the weights around it; None where they do not tell."""
    if site.part.startswith("resid."):
        return anatomy.dims.hidden
    experts = (site.expert,) if site.expert is not None else (None, 0)
    for part, axis in _WIDTHS.get(site.part, ()):
        for expert in experts:
            if (weight := Site(site.layer, part, expert)) in anatomy.matrices:
                return int(anatomy.weight(weight).shape[axis])
    return None


def check_activation(anatomy: Anatomy, site: Site) -> None:
    """Refuse a site that cannot be changed while the model runs.

    Raises:
        UnknownSite: With the reason.
    """
    if site.part in STREAMED:
        raise UnknownSite(
            f"{site} never exists as a tensor that could be changed; change attn.q, attn.k or attn.mix instead"
        )
    in_expert = (
        site.part in ("mlp.gate", "mlp.up", "mlp.down.in", "mlp.out")
        and site.layer in anatomy.experts
        and site.expert is not None
        and 0 <= site.expert < anatomy.num_experts
    )
    if site not in anatomy.taps and not in_expert:
        known = [s for s in anatomy.activation_sites if s.part in ACTIVATION_PARTS]
        raise missing(anatomy, site, known)


def numbers(
    asked: int | Sequence[int] | Tensor, limit: int | None, *, what: str, where: object
) -> Int[Tensor, "number"]:
    """Numbers from 0 below a limit, as a vector; a bool mask stands for the places where it is true.

    Args:
        asked: One, several, or a mask.
        limit: How many there are; None when unknown.
        what: The word for one of them.
        where: Of what they are a part.

    Raises:
        UnknownOption: Not whole, negative, too large, or a mask of another length.
    """
    try:
        found = torch.as_tensor(asked)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnknownOption(f"{what} {asked!r} of {where}: whole numbers from 0 are needed") from error
    found = found.detach().reshape(-1)
    if found.dtype == torch.bool:
        if limit is not None and len(found) != limit:
            raise UnknownOption(f"a mask of {len(found)} {what}s was given; {where} has {limit}")
        return found.nonzero()[:, 0]
    if found.numel() and (found.is_floating_point() or found.is_complex()):
        raise UnknownOption(f"{what} {found.tolist()} of {where}: whole numbers from 0 are needed")
    found = found.to(torch.int64)
    bad = (
        found[(found < 0) | (found >= (found.max() + 1 if limit is None else limit))] if len(found) else found
    )
    if len(bad):
        count = f"it has {limit} (0 to {limit - 1})" if limit else "they count from 0"
        raise UnknownOption(f"{where} has no {what} {int(bad[0])}; {count}")
    return found
