"""What lies around the blocks of a recorded model: embedding tables by the ids they are read with, final norm, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skerry.anatomy.family import Matrix
from skerry.anatomy.model import Anatomy
from skerry.anatomy.traced.block import Norm, norms_among
from skerry.anatomy.traced.blocks import Pass
from skerry.anatomy.traced.flow import Flow, Linear
from skerry.anatomy.traced.run import NUM_POSITIONS, Recorded


@dataclass
class Around:
    """Places outside the blocks.

    Attributes:
        matrices: Weight part to parameter.
        norms: Norm part to norm.
        head_in: Node of what the head reads.
    """

    matrices: dict[str, Matrix] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    head_in: int | None = None


def look_around(
    recorded: Recorded, passes: Sequence[Pass], anatomy: Anatomy, params: Mapping[str, Tensor]
) -> Around:
    """Everything outside the blocks that the data flow names."""
    around, flow = Around(), recorded.flow
    _tables(around, recorded, anatomy.dims.num_heads)
    first, last = passes[0], passes[-1]
    for norm in norms_among(flow, flow.calls):
        if norm.call.end <= first.call.start and flow.reaches(norm.out, first.inp, through_projections=True):
            around.norms["norm.embed"] = norm
        if norm.call.start >= last.call.end and norm.inp == last.out and "norm.final" not in around.norms:
            around.norms["norm.final"] = norm
            around.head_in = norm.out
    _projections(around, flow, passes, params, anatomy.dims.hidden)
    head = _head(around, recorded, passes, anatomy, params)
    embed = around.matrices.get("w.embed")
    if head is not None and (embed is None or params[head.path].data_ptr() != params[embed.path].data_ptr()):
        around.matrices["w.head"] = head
    return around


def _tables(around: Around, recorded: Recorded, num_heads: int) -> None:
    nodes = recorded.flow.nodes
    for node in nodes:
        if node.op != "embedding" or node.replay is None:
            continue
        table, index = (nodes[int(r)] for r in node.replay[1][:2])
        part = _role_of_index(index.value, recorded.ids)
        if (
            table.shape[-1] == num_heads
            and len(node.shape) >= 3
            and node.shape[-1] == num_heads
            and part is None
        ):
            part = "w.position.relative"
        if part is not None and table.param is not None:
            around.matrices.setdefault(part, Matrix(table.param))


def _role_of_index(index: Tensor | None, ids: Tensor) -> str | None:
    """What a table is for, by what it is read with: the ids, rising positions, or one number everywhere."""
    if index is None or index.numel() == 0:
        return None
    if index.shape == ids.T.shape:  # a model that puts positions first
        index = index.T
    if index.shape[-1:] != (NUM_POSITIONS,):
        return None
    if index.shape == ids.shape and torch.equal(index.cpu(), ids):
        return "w.embed"
    steps = index.reshape(-1, NUM_POSITIONS).long().diff(dim=-1)
    if bool((steps == 1).all()):
        return "w.position"
    return "w.type" if bool((steps == 0).all()) and index.shape == ids.shape else None


def _projections(
    around: Around, flow: Flow, passes: Sequence[Pass], params: Mapping[str, Tensor], hidden: int
) -> None:
    """Embeddings narrower than the residual have a projection into it, and sometimes one out of it."""
    embed = around.matrices.get("w.embed")
    if embed is None or (width := params[embed.path].shape[-1]) == hidden:
        return
    for lin in flow.linears:
        if lin.param is None:
            continue
        if lin.out <= passes[0].call.start and (lin.num_in, lin.num_out) == (width, hidden):
            if lin.out == passes[0].inp or flow.reaches(lin.out, passes[0].inp):
                around.matrices["w.embed.project"] = _matrix(lin)
        elif _reads_end(flow, lin, passes[-1]) and (lin.num_in, lin.num_out) == (hidden, width):
            around.matrices["w.head.project"] = _matrix(lin)
            around.head_in = lin.out


def _matrix(lin: Linear) -> Matrix:
    assert lin.param is not None
    return Matrix(lin.param, transposed=lin.transposed)


def _reads_end(flow: Flow, lin: Linear, last: Pass) -> bool:
    return lin.out >= last.call.end and (lin.inp == last.out or flow.reaches(last.out, lin.inp))


def _head(
    around: Around,
    recorded: Recorded,
    passes: Sequence[Pass],
    anatomy: Anatomy,
    params: Mapping[str, Tensor],
) -> Matrix | None:
    """The head that the model declares, or the layer after the blocks that has an output for each token id."""
    get = getattr(anatomy.model, "get_output_embeddings", None)
    weight = getattr(get() if get is not None else None, "weight", None)
    if isinstance(weight, Tensor):
        return next((Matrix(name) for name, p in params.items() if p is weight), None)
    embed = around.matrices.get("w.embed")
    if embed is None:
        return None
    after = [lin for lin in recorded.flow.linears if lin.out >= passes[-1].call.end and lin.param is not None]
    return next((_matrix(lin) for lin in after if lin.num_out == params[embed.path].shape[0]), None)
