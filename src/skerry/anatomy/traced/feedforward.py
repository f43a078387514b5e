"""The feed-forward of a recorded block: a layer that writes the residual stream and reads an elementwise function of one or two others."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from skerry.anatomy.traced.block import Block, Piece
from skerry.anatomy.traced.flow import Behind, Linear
from skerry.anatomy.traced.operations import NONLINEAR, TOKENWISE
from skerry.anatomy.traced.record import Call

# Clamps limit both halves of some gated feed-forwards; they do not tell the gate.
_ACTIVATIONS = NONLINEAR - {"clamp", "clamp_min", "clamp_max", "minimum", "maximum", "opaque"}


class _Pair(NamedTuple):
    down: Linear
    ups: list[Linear]


def place_mlp(block: Block) -> None:
    """Name the largest feed-forward of the block; beside routed experts it is the expert that every token passes."""
    pairs = [p for down in block.behind(block.step.out).linears if (p := _pair(block, down)) is not None]
    if not pairs:
        return
    largest = max(pairs, key=lambda pair: pair.down.num_in * pair.down.num_out)
    placed = block.placed
    if placed.experts is None:
        _name(block, largest)
        return
    routed = placed.nodes, placed.pieces
    placed.nodes, placed.pieces = {}, {}
    _name(block, largest)
    del placed.nodes["mlp.in"]
    placed.shared = placed.nodes, placed.pieces
    placed.nodes, placed.pieces = routed


def _pair(block: Block, down: Linear) -> _Pair | None:
    """A layer with the one or two that it reads through elementwise operations, all of them reading one tensor."""
    output = block.placed.pieces.get("w.o")
    behind = block.behind(down.inp)
    ups = list(behind.linears)
    is_attention = output is not None and (down is output.linear or output.linear in ups)
    if is_attention or not 1 <= len(ups) <= 2 or behind.outer or down in ups:
        return None
    if len({up.inp for up in ups}) != 1 or any(lin.rows != block.num_tokens for lin in [down, *ups]):
        return None
    return _Pair(down, ups) if _is_tokenwise(block, behind) else None


def _is_tokenwise(block: Block, behind: Behind) -> bool:
    nodes = [block.flow.nodes[i] for i in behind.nodes if i >= block.since]
    made = [n for n in nodes if n.op != "source" and len(n.shape) > 1]
    return behind.ops <= TOKENWISE and all(math.prod(n.shape[:-1]) == block.num_tokens for n in made)


def _name(block: Block, pair: _Pair) -> None:
    down, ups = pair
    pieces = block.placed.pieces
    block.put("mlp.in", ups[0].inp, width=ups[0].num_in)
    block.put("mlp.down.in", down.inp, width=down.num_in)
    block.put("mlp.out", down.out)
    pieces["w.down"] = Piece(down)
    sides = _gating(block, down.inp)
    if sides is None:
        if (up := block.source(down.inp)) is not None:
            block.put("mlp.up", up.linear.out, up.columns)
            pieces["w.up"] = up
        return
    is_active = [bool(block.behind(side).ops & _ACTIVATIONS) for side in sides]
    first, second = (block.source(side) for side in sides)
    if is_active[0] == is_active[1] or first is None or second is None:
        names = " and ".join(sorted({block.own_name(up.name) for up in ups}))
        block.placed.doubts.append(
            f"the feed-forward multiplies two projections ({names}) and which of them is the gate could not be told"
        )
        return
    gate, up = (first, second) if is_active[0] else (second, first)
    block.put("mlp.gate", gate.linear.out, gate.columns)
    block.put("mlp.up", up.linear.out, up.columns)
    pieces["w.gate"], pieces["w.up"] = gate, up


def _gating(block: Block, node: int) -> tuple[int, int] | None:
    """The two sides of the product gate * up behind the down projection's input; None in a plain feed-forward."""
    flow = block.flow
    while flow.roots[node] not in flow.by_out:
        sides = [p for p in dict.fromkeys(flow.nodes[node].parents) if block.behind(p).linears]
        if not sides:
            return None
        # An activation written out (x * sigmoid(x)) multiplies two functions of the same outputs; a gate, of different ones.
        if flow.nodes[node].op == "mul" and len(sides) == 2:
            first, second = (_outputs(block, side) for side in sides)
            if first.isdisjoint(second):
                return sides[0], sides[1]
        node = sides[0]
    return None


def _outputs(block: Block, node: int) -> set[tuple[int, int]]:
    """The single outputs of linear layers that a tensor is made from."""
    found = set()
    for lin in block.behind(node).linears:
        columns = block.flow.columns(lin, node) or range(lin.num_out)
        found |= {(lin.out, column) for column in columns}
    return found


def place_experts(block: Block) -> None:
    """Routed experts that transformers keeps in one tensor each; experts kept any other way stay without a name."""
    names = ("num_experts", "is_transposed", "has_gate", "down_proj")
    for call in block.calls:
        module = call.module
        if all(hasattr(module, n) for n in names) and isinstance(module.down_proj, Tensor):
            if call.inp is not None and call.out is not None:
                _name_experts(block, call, call.inp, call.out)
            return


def _name_experts(block: Block, call: Call, inp: int, out: int) -> None:
    pieces = block.placed.pieces
    block.placed.experts = call
    taken = {id(piece.linear) for piece in pieces.values()}
    beside = [lin for lin in block.whole if lin.inp == block.flow.roots[inp] and id(lin) not in taken]
    routers = [lin for lin in beside if lin.num_out == call.module.num_experts]
    gates = [lin for lin in beside if lin.num_out == 1]
    if len(routers) == 1:
        block.put("mlp.router", routers[0].out)
        pieces["w.router"] = Piece(routers[0])
    if len(gates) == 1:
        pieces["w.router.shared"] = Piece(gates[0])
    width = beside[0].num_in if beside else 0
    block.put("mlp.in", inp, width=width)
    joined = _joining(block, out)
    block.put("mlp.out", out if joined is None else joined)


def _joining(block: Block, node: int) -> int | None:
    """The last tensor of a branch before it is added to the residual stream."""
    flow = block.flow
    for i in sorted(_after(block, node)):
        parents = flow.nodes[i].parents
        if flow.nodes[i].op == "add" and len(parents) == 2:
            on = [block.is_made_from(p, node) for p in parents]
            if on[0] != on[1] and block.carries_stream(parents[0] if on[1] else parents[1]):
                return parents[0] if on[0] else parents[1]
    return None


def _after(block: Block, node: int) -> set[int]:
    todo, seen = [node], {node}
    while todo:
        children = block.flow.children.get(todo.pop(), ())
        fresh = [
            c for c in children if c < block.end and c not in seen and block.flow.nodes[c].op in TOKENWISE
        ]
        seen.update(fresh)
        todo += fresh
    return seen
