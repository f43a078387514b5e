"""Value heads as places for rotations: v' = v R is undone by the output projection, since attention only adds values up.

Exact wherever the mix of a head is linear in its values, with learned sinks too. Whether it is, one forward tells: values are changed to
256 v R and the mix back to mix R^T / 256, which must be the mix as it was. A model that clips its values (OLMo 1) fails, and so does one
whose heads are laid out otherwise than declared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.anatomy.change import change
from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.quiet import quiet
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import trial_ids
from skerry.tame.hadamard import random_orthogonal

_FACTOR = 256.0
_NUM_TOKENS = 12


@dataclass(frozen=True)
class Heads:
    """The value heads of one layer.

    Attributes:
        layer: Block number.
        values: The map that has the value projection among its rows.
        output: The output projection.
        num_heads: Query heads.
        num_kv_heads: Value heads.
        width: Channels of one head.
    """

    layer: int
    values: Dense
    output: Dense
    num_heads: int
    num_kv_heads: int
    width: int


def find_heads(anatomy: Anatomy) -> tuple[dict[int, Heads], dict[int, str]]:
    """Layer to its value heads where they can be rotated, and layer to the reason where they cannot."""
    maps = {(d.layer, part): d for d in dense_maps(anatomy) for part in d.pieces if part in ("w.v", "w.o")}
    found: dict[int, Heads] = {}
    why_not: dict[int, str] = {}
    dims = anatomy.dims
    for layer in range(dims.num_layers):
        values, output = maps.get((layer, "w.v")), maps.get((layer, "w.o"))
        if values is None or output is None:
            why_not[layer] = f"{'w.v' if values is None else 'w.o'} was not placed"
            continue
        width, rest = divmod(len(values.rows("w.v")), dims.num_kv_heads)
        if rest or output.weight.shape[1] != width * dims.num_heads:
            why_not[layer] = (
                f"{len(values.rows('w.v'))} rows of w.v and {output.weight.shape[1]} columns of w.o do not make "
                f"{dims.num_kv_heads} value and {dims.num_heads} query heads"
            )
        elif not {Site(layer, "attn.v"), Site(layer, "attn.mix")} <= set(anatomy.taps):
            why_not[layer] = "attn.v or attn.mix was not placed, so the claim cannot be checked"
        else:
            found[layer] = Heads(layer, values, output, dims.num_heads, dims.num_kv_heads, width)
    for layer, error in _errors(anatomy, found).items():
        eps = torch.finfo(found[layer].output.parameter.dtype).eps
        if not error <= max(16 * eps, 1e-5):
            del found[layer]
            why_not[layer] = (
                "on a few ids its mix holds values that are no numbers"
                if error != error
                else (
                    f"the mix of a head is not linear in its values (a scaled rotation moves it by {error:.1e}): something between v and o, "
                    "such as a clip or a norm, does not commute with a rotation"
                )
            )
    return found, why_not


def turn_heads(x: Tensor, r: Tensor, num_heads: int) -> Tensor:
    """Columns of [... head*channel] times R, [channel channel] or [kv_head channel channel], for each head of a group."""
    parts = x.unflatten(-1, (num_heads, -1))
    if r.dim() == 2:
        return (parts @ r).flatten(-2)
    wide = r.repeat_interleave(num_heads // len(r), 0)
    return torch.einsum("...hc,hcd->...hd", parts, wide).flatten(-2)


@torch.no_grad()
def _errors(anatomy: Anatomy, heads: dict[int, Heads]) -> dict[int, float]:
    """Layer to how far its mix moves, relative to its size, when values are rotated and the mix is rotated back."""
    mixes: dict[int, Tensor] = {}
    errors: dict[int, float] = {}
    rotations = {
        layer: torch.stack([random_orthogonal(h.width, seed=layer * 1000 + i) for i in range(h.num_kv_heads)])
        for layer, h in heads.items()
    }

    def turn(layer: int) -> Callable[[Tensor, Tensor | None], Tensor]:
        def edit(v: Tensor, _tokens: Tensor | None) -> Tensor:
            return (turn_heads(v.double(), rotations[layer], heads[layer].num_kv_heads) * _FACTOR).to(v)

        return edit

    def turn_back(layer: int) -> Callable[[Tensor, Tensor | None], Tensor]:
        def edit(mix: Tensor, _tokens: Tensor | None) -> Tensor:
            back = rotations[layer].transpose(-1, -2)
            new = turn_heads(mix.double(), back, heads[layer].num_heads) / _FACTOR
            errors[layer] = float((new - mixes[layer].double()).norm() / mixes[layer].double().norm())
            return mixes[layer].to(mix)  # the next layer reads what it read before

        return edit

    def keep(layer: int) -> Callable[[Tensor, Tensor | None], Tensor]:
        def edit(mix: Tensor, _tokens: Tensor | None) -> Tensor:
            mixes[layer] = mix.clone()
            return mix

        return edit

    ids = trial_ids(anatomy.config, _NUM_TOKENS)
    with quiet(anatomy.model), torch.inference_mode(False), torch.no_grad():
        with change(anatomy, {Site(layer, "attn.mix"): keep(layer) for layer in heads}):
            run(anatomy, ids)
        edits = {Site(layer, "attn.v"): turn(layer) for layer in heads}
        edits |= {Site(layer, "attn.mix"): turn_back(layer) for layer in heads}
        with change(anatomy, edits):
            run(anatomy, ids)
    return errors
