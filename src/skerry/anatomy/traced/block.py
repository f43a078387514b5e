"""One run of one block: what was found in it, and the questions that attention, feed-forward and residual all ask of its graph.

Nothing here or in `attention`, `feedforward` and `residual` reads a module's name or class. A part that the data flow does not show is
left out, and no linear layer gets a name that it does not earn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from skerry.anatomy.splits import Dims, Split
from skerry.anatomy.traced.blocks import Pass
from skerry.anatomy.traced.flow import Behind, Flow, Linear
from skerry.anatomy.traced.record import Attention, Call


@dataclass(frozen=True)
class Piece:
    """A linear layer's part in a block: all its outputs, or those in `columns`."""

    linear: Linear
    columns: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """Number of outputs."""
        return self.linear.num_out if self.columns is None else len(self.columns)


class Place(NamedTuple):
    """A tensor of the graph: its root, its channels, and which of them are meant (None: all)."""

    root: int
    width: int
    columns: tuple[int, ...] | None = None


class Norm(NamedTuple):
    """One run of a norm, with the roots of what it read and wrote."""

    call: Call
    inp: int
    out: int


@dataclass
class Placed:
    """What was found in one block.

    Attributes:
        nodes: Part to where its tensor is.
        pieces: Weight part to linear layer.
        chained: Weight part to a layer that has the part's output but reads another layer (low-rank chains): no weight site.
        norms: Norm part to norms (several where each head has its own).
        attention: The attention of the block.
        experts: The call of its routed experts.
        shared: Places and pieces of the expert that every token passes, beside routed experts.
        sink: Name of the parameter of learned sink logits.
        heads: Query heads, key/value heads, channels of a head.
        doubts: Sentences about what is there and could not be named.
    """

    nodes: dict[str, Place] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)
    chained: dict[str, Piece] = field(default_factory=dict)
    norms: dict[str, list[Norm]] = field(default_factory=dict)
    attention: Attention | None = None
    experts: Call | None = None
    shared: tuple[dict[str, Place], dict[str, Piece]] = field(default_factory=lambda: ({}, {}))
    sink: str | None = None
    heads: tuple[int, int, int] = (0, 0, 0)
    doubts: list[str] = field(default_factory=list)


class Block:
    """One run of one block, read from the graph."""

    def __init__(self, flow: Flow, step: Pass, *, num_samples: int, num_positions: int) -> None:
        self.flow, self.step = flow, step
        self.num_samples, self.num_positions = num_samples, num_positions
        self.num_tokens = num_samples * num_positions
        self.since, self.end = step.call.start, step.call.end
        self.calls = [c for c in flow.calls if self._is_inside(c)]
        self.linears = [lin for lin in flow.linears if self.since <= lin.out < self.end]
        self.whole = [lin for lin in self.linears if lin.rows == self.num_tokens]
        self.norms = norms_among(flow, self.calls)
        self.placed = Placed()

    def _is_inside(self, call: Call) -> bool:
        while call.parent >= 0:
            if call.parent == self.step.call.index:
                return True
            call = self.flow.calls[call.parent]
        return False

    def own_name(self, name: str) -> str:
        """A name without the path of the block."""
        return name.removeprefix(self.step.call.path + ".")

    def put(self, part: str, node: int, columns: tuple[int, ...] | None = None, width: int = 0) -> None:
        """Remember where a part's tensor is."""
        root = self.flow.roots[node]
        self.placed.nodes[part] = Place(root, width or self.flow.nodes[root].shape[-1], columns)

    def root(self, part: str) -> int | None:
        """The root of a part that was placed."""
        place = self.placed.nodes.get(part)
        return None if place is None else place.root

    def behind(self, node: int) -> Behind:
        """What a tensor is made from inside the block, back to the nearest linear layers."""
        return self.flow.behind(node, since=self.since)

    def linears_behind(self, node: int) -> list[Linear]:
        """The nearest linear layers behind a tensor that read every token."""
        return [lin for lin in self.behind(node).linears if lin.rows == self.num_tokens]

    def is_made_from(self, node: int, origin: int) -> bool:
        """Whether a tensor depends on another."""
        return origin in self.flow.ancestors(node, since=origin)

    def source(self, node: int) -> Piece | None:
        """The one linear layer that a tensor is made from, with its columns."""
        linears = self.linears_behind(node)
        if len(linears) > 1 and len({lin.num_out for lin in linears}) == 1:
            # A low-rank addition (LoRA): the layer that reads the block counts, not the one that reads another layer.
            added = [lin for lin in linears if self.behind(lin.inp).linears]
            linears = [lin for lin in linears if lin not in added]
            if len(linears) == 1:
                self.doubt_addition(linears[0], added)
        if len(linears) != 1:
            return None
        columns = self.flow.columns(linears[0], node)
        if not columns or sorted(columns) == list(range(linears[0].num_out)):
            return Piece(linears[0])
        return Piece(linears[0], tuple(columns))

    def doubt_addition(self, lin: Linear, added: Sequence[Linear]) -> None:
        """Say that a layer's output is not all that its place carries."""
        if added:
            names = " and ".join(self.own_name(other.name) for other in added)
            self.placed.doubts.append(
                f"{self.own_name(lin.name)} is measured alone, without {names} beside it"
            )

    def carries_stream(self, node: int) -> bool:
        """Whether the block's input reaches a tensor without passing a product: it is on the residual stream, or normed from it."""
        return self.flow.roots[node] == self.step.inp or self.flow.reaches(self.step.inp, node)

    def is_stream(self, root: int) -> bool:
        """Whether a tensor reaches the block's output without passing a product."""
        return self.flow.reaches(root, self.step.out)


def norms_among(flow: Flow, calls: list[Call]) -> list[Norm]:
    """The runs of norms; a module that hands on what it gets is none."""
    found = []
    for call in calls:
        if call.plus is not None and call.inp is not None and call.out is not None:
            norm = Norm(call, flow.roots[call.inp], flow.roots[call.out])
            found += [norm] if norm.inp != norm.out else []
    return found


def dims_of_blocks(placed: list[Placed], hidden: int) -> Dims:
    """Widths as the first block with attention shows them."""
    heads = next((p.heads for p in placed if p.heads[0]), (0, 0, 0))
    return Dims(len(placed), hidden, *heads)


def cut(columns: tuple[int, ...], width: int) -> Split:
    """The split that takes these columns: a view where they lie in one run or in equal runs at equal distances, else a copy."""
    begins = [i for i in range(len(columns)) if i == 0 or columns[i] != columns[i - 1] + 1]
    starts, size, first = [columns[i] for i in begins], len(columns) // len(begins), columns[0]
    if len(starts) == 1:
        return lambda x, dims: x[..., first : first + size]
    period = width // len(starts)
    is_regular = (
        begins == [i * size for i in range(len(starts))]
        and starts == [first + i * period for i in range(len(starts))]
        and period * len(starts) == width
        and first + size <= period
    )
    if is_regular:
        return lambda x, dims: x.unflatten(-1, (-1, period))[..., first : first + size].flatten(-2)
    return lambda x, dims: x[..., list(columns)]
