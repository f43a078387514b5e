"""Binds what the data flow showed to the modules and parameters of the model: nodes become taps, pieces become matrices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from skerry.anatomy.family import Matrix, Tap
from skerry.anatomy.model import Anatomy, BoundMatrix, BoundTap
from skerry.anatomy.sites import NORM_BIAS, Site
from skerry.anatomy.splits import Dims, Split, every_other, half
from skerry.anatomy.traced.attention import place_attention
from skerry.anatomy.traced.block import Block, Norm, Piece, Place, Placed, cut, dims_of_blocks
from skerry.anatomy.traced.blocks import Pass, find_blocks
from skerry.anatomy.traced.feedforward import place_experts, place_mlp
from skerry.anatomy.traced.leftover import confidence, unplaced
from skerry.anatomy.traced.outer import Around, look_around
from skerry.anatomy.traced.record import Call
from skerry.anatomy.traced.residual import place_residual
from skerry.anatomy.traced.run import NUM_POSITIONS, NUM_SAMPLES, NUM_TOKENS, Recorded, record_forward
from skerry.errors import UnresolvedArchitecture

Side = Literal["input", "output"]
# The linear layers' own modules come first among all that touch a tensor: part -> weight part, side.
_OWN: dict[str, tuple[str, Side]] = {
    "attn.in": ("w.q", "input"),
    "attn.q": ("w.q", "output"),
    "attn.k": ("w.k", "output"),
    "attn.v": ("w.v", "output"),
    "attn.mix": ("w.o", "input"),
    "attn.out": ("w.o", "output"),
    "mlp.in": ("w.up", "input"),
    "mlp.gate": ("w.gate", "output"),
    "mlp.up": ("w.up", "output"),
    "mlp.down.in": ("w.down", "input"),
    "mlp.out": ("w.down", "output"),
}


class Traced(NamedTuple):
    """A traced anatomy and the ids of its forward, which the model is known to take."""

    anatomy: Anatomy
    ids: Tensor


def trace_anatomy(model: nn.Module) -> Traced:
    """Name the places of a model from the data flow of one forward of 2 x 8 tokens.

    Raises:
        UnresolvedArchitecture: The model could not be called with token ids, or has no list of blocks.
    """
    recorded = record_forward(model)
    passes = find_blocks(recorded.flow, model, num_tokens=NUM_TOKENS)
    if not passes:
        raise UnresolvedArchitecture(
            f"{type(model).__name__} has no list of blocks that hand a residual stream [sample, position, width] to each other; "
            "skerry measures models made of such blocks. If yours is, give the inner module that holds their list"
        )
    return Traced(_Binder(model, recorded, passes).bind(), recorded.ids)


def _place(flow: Any, step: Pass) -> Block:
    block = Block(flow, step, num_samples=NUM_SAMPLES, num_positions=NUM_POSITIONS)
    block.put("resid.in", step.inp)
    block.put("resid.out", step.out)
    place_attention(block)
    place_experts(block)
    place_mlp(block)
    place_residual(block)
    return block


class _Binder:
    def __init__(self, model: nn.Module, recorded: Recorded, passes: Sequence[Pass]) -> None:
        self.recorded, self.flow, self.passes = recorded, recorded.flow, passes
        self.params: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self.runs: dict[int, list[Pass]] = defaultdict(list)
        for step in passes:
            self.runs[id(step.call.module)].append(step)
        self.firsts = [runs[0] for runs in self.runs.values()]
        self.uses = Counter(id(call.module) for call in self.flow.calls)
        self.touching: dict[int, list[tuple[Call, Side]]] = defaultdict(list)
        for call in self.flow.calls:
            if call.inp is not None:
                self.touching[self.flow.roots[call.inp]].append((call, "input"))
            if call.out is not None:
                self.touching[self.flow.roots[call.out]].append((call, "output"))
        self.same: dict[Place, Site] = {}
        self.anatomy = Anatomy(
            model,
            recorded.trunk,
            "traced",
            Dims(0, 0, 0, 0, 0),
            taps={},
            matrices={},
            attention={},
            experts={},
        )
        self.lost: dict[str, list[int]] = defaultdict(list)  # sentence to layers

    def bind(self) -> Anatomy:
        """Place every block, then what lies around the blocks, and say what was left over."""
        anatomy, blocks = self.anatomy, [_place(self.flow, step) for step in self.firsts]
        hidden = self.flow.nodes[self.passes[0].inp].shape[-1]
        anatomy.dims = dims_of_blocks([block.placed for block in blocks], hidden)
        self._bind_around(look_around(self.recorded, self.passes, anatomy, self.params))
        for layer, block in enumerate(blocks):
            self._bind_block(layer, block.placed)
            for doubt in [*block.placed.doubts, *self._sharing(layer)]:
                self.lost[doubt].append(layer)
        anatomy.unplaced = (*self.recorded.notes, *unplaced(self.flow, blocks, anatomy, self.lost))
        anatomy.confidence = confidence(blocks, anatomy)
        return anatomy

    def _times(self, layer: int | None) -> int:
        """How often the block runs in one forward."""
        return 1 if layer is None else len(self.runs[id(self.firsts[layer].call.module)])

    def _sharing(self, layer: int) -> list[str]:
        times = self._times(layer)
        pooled = f"runs {times} times in one forward (shared weights); its statistics pool all {times} runs"
        return [pooled] if times > 1 else []

    def _bind_block(self, layer: int, found: Placed) -> None:
        own = self.firsts[layer].call
        prefer: dict[str, tuple[Call, Side]] = {"resid.in": (own, "input"), "resid.out": (own, "output")}
        for part, (weight, side) in _OWN.items():
            piece = found.pieces.get(weight) or found.chained.get(weight)
            if piece is not None and piece.linear.call is not None:
                prefer[part] = self.flow.calls[piece.linear.call], side
        for part, place in sorted(found.nodes.items(), key=lambda item: Site(layer, item[0])):
            self._bind_tap(Site(layer, part), place, prefer.get(part))
        for part, piece in found.pieces.items():
            self._bind_piece(Site(layer, part), piece)
        for part, norms in found.norms.items():
            self._bind_norms(Site(layer, part), norms)
        if found.sink is not None:
            self._bind_parameter(Site(layer, "w.sink"), Matrix(found.sink))
        if found.experts is not None:
            num_routed = self._bind_experts(layer, found.experts.module, found.experts.path)
            self._bind_shared_expert(layer, num_routed, found)
        if found.attention is not None:
            self._bind_attention(layer, found)

    def _bind_tap(self, site: Site, place: Place, prefer: tuple[Call, Side] | None = None) -> None:
        """Hook the tensor at a module that reads or writes it and does nothing else in a forward."""
        touching = self.touching.get(place.root, [])
        first = [t for t in touching if prefer is not None and t[0] is prefer[0] and t[1] == prefer[1]]
        times = self._times(site.layer)
        for call, side in [*first, *touching]:
            node = call.inp if side == "input" else call.out
            layout = None if node is None else self.flow.layout(node, place.width)
            if layout is not None and self.uses[id(call.module)] == times:
                split = _read_tokens(layout, place.columns, place.width)
                self.anatomy.taps[site] = BoundTap(call.module, Tap(call.path, side, split))
                if times == 1 and (earlier := self.same.setdefault(place, site)) != site:
                    self.anatomy.same_as[site] = earlier
                return
        if site.layer is not None:
            self.lost[f"{site.part} is not measured: {self._why_not(touching, times)}"].append(site.layer)

    def _why_not(self, touching: Sequence[tuple[Call, Side]], times: int) -> str:
        for call, _ in touching:
            uses = self.uses[id(call.module)]
            if uses != times:
                own = call.path.rpartition(".")[2]
                return f"the module {own} that reads or writes it runs {uses} times in one forward"
        return "no module reads or writes it by itself"

    # Weights

    def _bind_parameter(self, site: Site, matrix: Matrix) -> None:
        self.anatomy.matrices[site] = BoundMatrix(self.params[matrix.path], matrix)

    def _bind_piece(self, site: Site, piece: Piece) -> None:
        lin = piece.linear
        if lin.param is not None:
            split = None if piece.columns is None else cut(piece.columns, lin.num_out)
            self._bind_parameter(site, Matrix(lin.param, split, transposed=lin.transposed))

    def _bind_norms(self, site: Site, norms: Sequence[Norm]) -> None:
        for name in ("weight", "bias"):
            found = [getattr(norm.call.module, name, None) for norm in norms]
            values = [p for p in found if isinstance(p, Tensor)]
            if not values or len(values) != len(norms):
                return
            plus = (norms[0].call.plus or 0.0) if name == "weight" else 0.0
            matrix = Matrix(f"{norms[0].call.path}.{name}", plus=plus)
            part = site.part if name == "weight" else site.part + NORM_BIAS
            bound = BoundMatrix(values[0], matrix, more=tuple(values[1:]))
            self.anatomy.matrices[site._replace(part=part)] = bound

    def _bind_experts(self, layer: int, module: Any, path: str) -> int:
        self.anatomy.experts[layer] = module
        self.anatomy.num_experts = max(self.anatomy.num_experts, int(module.num_experts))
        pieces = half if module.is_concatenated else every_other
        names: dict[str, tuple[str, Split | None]] = {"w.down": ("down_proj", None)}
        if module.has_gate:
            names |= {"w.gate": ("gate_up_proj", pieces(0)), "w.up": ("gate_up_proj", pieces(1))}
        else:
            names["w.up"] = ("up_proj", None)
        for part, (name, split) in names.items():
            matrix = Matrix(f"{path}.{name}", split, transposed=bool(module.is_transposed), experts=True)
            for expert in range(int(module.num_experts)):
                bound = BoundMatrix(getattr(module, name), matrix, expert)
                self.anatomy.matrices[Site(layer, part, expert)] = bound
        return int(module.num_experts)

    def _bind_shared_expert(self, layer: int, expert: int, found: Placed) -> None:
        """An expert that every token passes counts behind the routed ones."""
        nodes, pieces = found.shared
        for part, place in nodes.items():
            self._bind_tap(Site(layer, part, expert), place)
        for part, piece in pieces.items():
            self._bind_piece(Site(layer, part, expert), piece)

    def _bind_attention(self, layer: int, found: Placed) -> None:
        assert found.attention is not None
        frame, calls = found.attention.frame, self.flow.calls
        while frame >= 0 and self.uses[id(calls[frame].module)] != self._times(layer):
            frame = calls[frame].parent
        if found.attention.visible and frame >= self.firsts[layer].call.index:
            self.anatomy.attention[layer] = calls[frame].module
        else:
            self.lost[
                "attention is computed where its scores cannot be read; attn.logits and attn.probs are not measured"
            ].append(layer)

    def _bind_around(self, around: Around) -> None:
        for part, matrix in around.matrices.items():
            self._bind_parameter(Site(None, part), matrix)
        for part, norm in around.norms.items():
            self._bind_norms(Site(None, part), [norm])
        if around.head_in is not None:
            root = self.flow.roots[around.head_in]
            self._bind_tap(Site(None, "head.in"), Place(root, self.flow.nodes[root].shape[-1]))


def _read_tokens(layout: str, columns: tuple[int, ...] | None, width: int) -> Split | None:
    """The split that gives rows sample by sample and the columns that are meant; None where the tensor is just that."""
    piece = None if columns is None else cut(columns, width)
    if layout == "sample position":
        return piece
    return lambda x, dims: x.transpose(0, 1) if piece is None else piece(x.transpose(0, 1), dims)
