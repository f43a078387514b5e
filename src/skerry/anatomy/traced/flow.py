"""Questions to a recorded forward: which linear layers exist, what lies between two tensors, which columns of one make another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.anatomy.traced.operations import LAYOUT, PRODUCTS, SAME, TOKENWISE
from skerry.anatomy.traced.record import Call, Node, Ref, Trace


@dataclass(frozen=True, eq=False)
class Linear:
    """One product of token vectors with a parameter.

    Attributes:
        inp: Node that it reads (root).
        out: Node that it writes, bias included (root).
        param: Name of the parameter; None where the weight is no plain matrix (quantized).
        transposed: Whether the parameter is stored [in, out].
        call: The module call that is this product and nothing else; None for a product in the middle of other code.
        name: What to call it in sentences: the module's path, else the parameter's.
        num_in: Inputs.
        num_out: Outputs.
        rows: Token vectors that it read.
    """

    inp: int
    out: int
    param: str | None
    transposed: bool
    call: int | None
    name: str
    num_in: int
    num_out: int
    rows: int


@dataclass(frozen=True)
class Behind:
    """What a tensor is made from, back to the nearest linear layers and to the start of a block."""

    linears: tuple[Linear, ...]
    ops: frozenset[str]
    nodes: frozenset[int]
    outer: frozenset[int]


class Flow:
    """A trace with its index.

    A tensor's root is the earliest node with the same values of every token: reshapes, copies and exchanges of sample and position lead
    back to it.
    """

    def __init__(self, trace: Trace, *, num_samples: int, num_positions: int) -> None:
        self.trace, self.nodes, self.calls = trace, trace.nodes, trace.calls
        self.num_samples, self.num_positions = num_samples, num_positions
        self.children: dict[int, list[int]] = {}
        self.roots: list[int] = []
        self._positions_first: list[bool] = []
        for i, node in enumerate(self.nodes):
            self._positions_first.append(self._begins_with_positions(node))
            self.roots.append(self._root(i, node))
            for parent in node.parents:
                self.children.setdefault(parent, []).append(i)
        self.linears = self._products()
        taken = {lin.call for lin in self.linears}
        self.linears += [
            lin for call in self.calls if call.index not in taken and (lin := self._opaque(call))
        ]
        self.linears.sort(key=lambda lin: lin.out)
        self.by_out = {lin.out: lin for lin in self.linears}

    def _begins_with_positions(self, node: Node) -> bool:
        axes = tuple(n for n in node.shape[:-1] if n != 1)[:2]
        if axes in ((self.num_samples, self.num_positions), (self.num_positions, self.num_samples)):
            return axes[0] == self.num_positions
        return bool(node.parents) and self._positions_first[node.parents[0]]

    def _root(self, i: int, node: Node) -> int:
        same = node.op in SAME or (node.op in ("permute", "transpose", "t") and self._keeps_tokens(node))
        if not same or not node.parents or node.parents[0] >= i:
            return i
        parent = self.nodes[node.parents[0]]
        same = math.prod(parent.shape) == math.prod(node.shape) and parent.dtype == node.dtype
        return self.roots[node.parents[0]] if same else i

    def _keeps_tokens(self, node: Node) -> bool:
        """Whether only axes of size 1 change places, or sample and position."""
        if node.replay is None or node.op == "t":
            return False
        shape = self.nodes[node.parents[0]].shape
        order = list(range(len(shape)))
        if node.op == "permute":
            order = [d % len(shape) for d in node.replay[1][1]]
        else:
            a, b = node.replay[1][1:3]
            order[a], order[b] = order[b], order[a]
        kept = [d for d in order if shape[d] != 1]
        if {shape[d] for d in kept[:2]} == {self.num_samples, self.num_positions} and len(kept) > 2:
            kept[:2] = sorted(kept[:2])
        return kept == sorted(kept)

    def layout(self, i: int, width: int) -> str | None:
        """How the tokens lie in a tensor: `sample position`, `position sample`, or None where its rows are not the tokens."""
        shape = self.nodes[i].shape
        axes = [n for n in shape[:-1] if n != 1]
        if shape[-1:] != (width,):
            return None
        if axes == [self.num_samples * self.num_positions]:
            return None if self._positions_first[i] else "sample position"
        if shape[:-1] == (self.num_positions, self.num_samples):
            return "position sample"
        return "sample position" if axes == [self.num_samples, self.num_positions] else None

    # Linear layers

    def _products(self) -> list[Linear]:
        found = []
        for i, node in enumerate(self.nodes):
            if node.op in PRODUCTS and node.replay is not None:
                args = [a for a in node.replay[1] if isinstance(a, Ref)]
                x, w = args[:2] if len(args) == 2 or node.op == "linear" else args[-2:]
                if (weight := self._weight(w, flipped=node.op == "linear")) is not None:
                    found.append((i, int(x), *weight))
        per_frame: dict[int, int] = {}
        for i, *_ in found:
            per_frame[self.nodes[i].frame] = per_frame.get(self.nodes[i].frame, 0) + 1
        return [
            self._linear(i, x, param, transposed, per_frame[self.nodes[i].frame] == 1)
            for i, x, param, transposed in found
        ]

    def _weight(self, i: int, *, flipped: bool) -> tuple[str, bool] | None:
        """Name of the matrix parameter behind an operand, and whether it is stored [in, out]; None when it is data."""
        chain = []
        while (node := self.nodes[i]).param is None:
            if not node.parents or node.op not in LAYOUT or node.replay is None:
                return None
            chain.append(node)
            i = node.parents[0]
        if len(node.shape) != 2:
            return None
        # Strides tell a matrix from its transpose, even a square one; on the meta device this moves no data.
        w = torch.empty(node.shape, device="meta")
        for step in reversed(chain):
            if step.op not in ("_to_copy", "clone"):
                w = _replay(step, {step.parents[0]: w})
        w = w.squeeze() if w.dim() > 2 else w
        if sorted(w.shape) != sorted(node.shape) or w.dim() != 2:
            return None
        straight = w.stride() == (node.shape[1], 1)
        return node.param, straight != flipped

    def _linear(self, i: int, x: int, param: str, transposed: bool, alone: bool) -> Linear:
        node, out, owner = self.nodes[i], i, None
        num_in = self.nodes[x].shape[-1]
        if node.frame >= 0 and alone:
            call = self.calls[node.frame]
            owns = param.rpartition(".")[0] == call.path and "." not in param.removeprefix(call.path + ".")
            if (
                owns
                and call.inp is not None
                and self.roots[call.inp] == self.roots[x]
                and call.out is not None
            ):
                end = self.roots[call.out]
                last = self.nodes[end]
                if end == i or (last.op == "add" and any(self.roots[p] == i for p in last.parents)):
                    out, owner = end, call.index
        name = self.calls[owner].path if owner is not None else param
        rows = math.prod(self.nodes[x].shape[:-1])
        return Linear(self.roots[x], out, param, transposed, owner, name, num_in, node.shape[-1], rows)

    def _opaque(self, call: Call) -> Linear | None:
        """A module that says that it is a linear layer, whose product we did not see (quantized kernels)."""
        sizes = getattr(call.module, "in_features", None), getattr(call.module, "out_features", None)
        if not all(isinstance(n, int) for n in sizes) or call.inp is None or call.out is None:
            return None
        inp, out = self.nodes[call.inp].shape, self.nodes[call.out].shape
        inner = any(
            lin.call is not None and self.calls[lin.call].parent == call.index for lin in self.linears
        )
        if inner or (inp[-1], out[-1]) != sizes or inp[:-1] != out[:-1]:
            return None
        rows = math.prod(inp[:-1])
        roots = self.roots[call.inp], self.roots[call.out]
        return Linear(*roots, None, False, call.index, call.path, inp[-1], out[-1], rows)

    # Ways through the graph

    def behind(self, start: int, *, since: int) -> Behind:
        """Back from `start` to the nearest linear layers; nodes older than `since` are outer."""
        todo, seen, ops, outer = [start], {start}, set(), set()
        linears: dict[int, Linear] = {}
        while todo:
            i = todo.pop()
            lin = self.by_out.get(self.roots[i])
            if lin is not None and lin.out >= since:
                linears[lin.out] = lin
            elif i < since:
                if self.nodes[i].param is None:
                    outer.add(i)
            else:
                ops.add(self.nodes[i].op)
                fresh = [p for p in self.nodes[i].parents if p not in seen]
                seen.update(fresh)
                todo += fresh
        found = tuple(linears[i] for i in sorted(linears))
        return Behind(found, frozenset(ops), frozenset(seen), frozenset(outer))

    def ancestors(self, start: int, *, since: int) -> set[int]:
        """All nodes from `since` on that `start` is made from, itself included."""
        todo, seen = [start], {start}
        while todo:
            fresh = [p for p in self.nodes[todo.pop()].parents if p >= since and p not in seen]
            seen.update(fresh)
            todo += fresh
        return seen

    def reaches(self, start: int, end: int, *, through_projections: bool = False) -> bool:
        """Whether `end` is made from `start` with operations on single tokens only, without (or with) linear layers."""
        allowed = TOKENWISE | PRODUCTS | {"t"} if through_projections else TOKENWISE
        todo, seen = [start], {start}
        while todo:
            i = todo.pop()
            if i == end:
                return True
            fresh = [
                c
                for c in self.children.get(i, ())
                if c <= end and c not in seen and self.nodes[c].op in allowed
            ]
            seen.update(fresh)
            todo += fresh
        return False

    def columns(self, lin: Linear, target: int) -> list[int] | None:
        """The outputs of a linear layer that a tensor is made from, in the order in which the tensor holds them.

        Column numbers are sent through the recorded operations in place of the values. Operations that move values are replayed;
        those that keep the shape (rotation, norms, activations) keep the numbers. None when the way is lost.
        """
        start = self.nodes[lin.out]
        known: dict[int, Tensor] = {lin.out: torch.arange(start.shape[-1]).expand(start.shape).contiguous()}
        last: Tensor | None = None
        for i in sorted(self.ancestors(target, since=lin.out)):
            node = self.nodes[i]
            parents = [p for p in node.parents if p in known]
            if i in known or not parents:
                continue
            moved = self._moved(node, known, parents)
            if moved is not None:
                known[i] = moved
        last = known.get(target)
        if last is None:
            return None
        flat = last.flatten()
        return list(dict.fromkeys(flat[flat >= 0].tolist()))

    def _moved(self, node: Node, known: dict[int, Tensor], parents: list[int]) -> Tensor | None:
        if node.op in LAYOUT and node.replay is not None:
            given = dict.fromkeys(node.parents, torch.tensor(0))
            for p in node.parents:
                value = self.nodes[p].value
                given[p] = (
                    known[p]
                    if p in known
                    else torch.full(self.nodes[p].shape, -1)
                    if value is None
                    else value
                )
            return _replay(node, given)
        same = next((p for p in parents if math.prod(self.nodes[p].shape) == math.prod(node.shape)), None)
        return None if same is None else known[same].reshape(node.shape)


def _replay(node: Node, given: dict[int, Tensor]) -> Tensor:
    """Do a recorded operation again on other tensors."""
    assert node.replay is not None
    func, args, kwargs, place = node.replay

    def put(x: Any) -> Any:
        if isinstance(x, Ref):
            return given[int(x)]
        return type(x)([put(item) for item in x]) if type(x) in (list, tuple) else x

    args = put(args)
    if node.op in ("view", "_unsafe_view", "_reshape_alias"):  # the memory order of numbers may differ
        return args[0].reshape(args[1])
    if node.op in ("clone", "_to_copy", "detach", "dropout"):
        return args[0]
    result = func(*args, **{k: put(v) for k, v in kwargs.items()})
    return result if isinstance(result, Tensor) else result[place]
