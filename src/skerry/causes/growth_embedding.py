"""An outlier that the embedding already has: token, position, type and norm, each with its part of the channel.

    h = s (m E[token] + P[position] + T[0]) + z + b

E, P, T are w.embed, w.position, w.type (0 where the model has none), m a constant factor, and s, z, b what norm.embed does (see
`growth_block`).  Where the rows of P begin (0, 2, behind the padding row) and what m is are found by which fits the measured embedding.
Here the whole value is to be explained, not a difference.  Limit: neither m nor a bias of the projection of a narrower embedding is
known behind a norm; `unexplained` shows when that matters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import NORM_BIAS, Site
from skerry.causes.growth_block import UNEXPLAINED, Affine, Expansion, fit_norm, identity

# Rows in front of the first position: one for padding and as many as families skip.
_MOST_OFFSETS = 8
_FITS = 1e-2


class _Guess(NamedTuple):
    """One reading of the embedding: its pieces, and how far it is from what was measured, relative."""

    pieces: dict[str, Tensor]
    affine: Affine
    residue: float


def expand_embedding(
    anatomy: Anatomy,
    channel: int,
    h: Float[Tensor, "row channel"],
    ids: Int[Tensor, "row"] | None,
    positions: Int[Tensor, "row"] | None,
) -> Expansion:
    """The terms of one channel of the embedding.

    Args:
        anatomy: The model.
        channel: Channel of the residual stream.
        h: resid.in of block 0.
        ids: Token id of each row.
        positions: Position of each row.
    """
    h = h.double()
    change = h[:, channel]
    if ids is None or positions is None or Site(None, "w.embed") not in anatomy.matrices:
        why = (
            "the token embedding is no place of the model" if ids is not None else "its tokens are not known"
        )
        return Expansion(change, {UNEXPLAINED: change}, notes=[f"the embedding is not taken apart: {why}"])
    guesses = [_guess(anatomy, channel, h, ids, positions + o) for o in _offsets(anatomy, positions)]
    best = min(guesses, key=lambda guess: guess.residue)
    terms = {part: best.affine.scale * x[:, channel] for part, x in best.pieces.items()}
    terms |= {"norm bias": best.affine.bias, "centre": best.affine.centre}
    terms = {part: x for part, x in terms.items() if bool(x.any())}
    terms[UNEXPLAINED] = change - sum(terms.values(), torch.zeros_like(change))
    notes = []
    if best.residue > _FITS:
        notes.append(
            f"the embedding is no sum of token, position and type with a norm: {best.residue:.1%} of it has no term"
        )
    return Expansion(change, terms, notes=notes)


def _offsets(anatomy: Anatomy, positions: Tensor) -> range:
    """Rows of the position embedding that position 0 may have."""
    if Site(None, "w.position") not in anatomy.matrices or not len(positions):
        return range(1)
    room = len(anatomy.weight(Site(None, "w.position"))) - int(positions.max())
    return range(max(1, min(_MOST_OFFSETS, room)))


def _guess(anatomy: Anatomy, channel: int, h: Tensor, ids: Tensor, rows: Tensor) -> _Guess:
    pieces = {"w.embed": _embedded(anatomy, ids)}
    known = anatomy.matrices
    if (site := Site(None, "w.position")) in known:
        table = anatomy.weight(site).cpu()
        pieces["w.position"] = table[rows.clamp_max(len(table) - 1)].double()
    if (site := Site(None, "w.type")) in known:
        pieces["w.type"] = anatomy.weight(site)[:1].cpu().double().expand(len(h), -1)
    if (site := Site(None, "norm.embed")) in known:
        offset = Site(None, "norm.embed" + NORM_BIAS)
        bias = anatomy.weight(offset).cpu().double() if offset in known else None
        total = torch.stack(list(pieces.values())).sum(0)
        fit = fit_norm(total, h, anatomy.weight(site).cpu().double(), bias, channel)
        return _Guess(pieces, fit.affine, fit.residue)
    token = pieces["w.embed"]
    rest = h - sum((x for part, x in pieces.items() if part != "w.embed"), torch.zeros_like(h))
    factor = float((rest * token).sum() / (token * token).sum().clamp_min(1e-300))
    pieces["w.embed"] = token * (1.0 if abs(factor - 1) < 1e-5 else factor)
    residue = float((rest - pieces["w.embed"]).norm() / h.norm().clamp_min(1e-300))
    return _Guess(pieces, identity(len(h)), residue)


def _embedded(anatomy: Anatomy, ids: Tensor) -> Tensor:
    """Rows of the token embedding, in the width of the residual."""
    table = anatomy.weight(Site(None, "w.embed"))
    x = table[ids.to(table.device)].cpu().double()
    site = Site(None, "w.embed.project")
    return x @ anatomy.weight(site).cpu().double().T if site in anatomy.matrices else x
