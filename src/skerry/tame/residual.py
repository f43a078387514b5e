"""The residual stream as a place for rotations: who writes it, who reads it, and through which norm.

A rotation x' = x Q of the stream is undone by its neighbours when every part of the model that touches the stream is known: tables and
linear maps that write it, linear maps that read it through a norm (or bare), and norms that commute with Q. What the sites declare is a
claim, so one traced forward checks it:

- each block only adds: resid.out is a combination of resid.in, what attention adds and what the feed-forward adds, with one factor each;
- each reader's input is such a combination, or a norm of one; the norm is an RMSNorm or a LayerNorm by what it computes, whatever its name;
- no other module with weights of the stream's width reads the stream.

Where one of these fails the stream cannot be rotated, and the reason names the place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skerry.anatomy.blocks import blocks_of
from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy, BoundMatrix
from skerry.anatomy.sites import Site
from skerry.errors import NotPossible
from skerry.tame.trace import Call, Trace, record

_READ = ("attn.in", "mlp.in", "head.in")
_EPS = ("eps", "variance_epsilon")


@dataclass(frozen=True, eq=False)
class Table:
    """An embedding whose rows are written to the stream."""

    name: str
    module: nn.Module
    key: str

    @property
    def parameter(self) -> Tensor:
        """[row channel]."""
        return getattr(self.module, self.key)


@dataclass(eq=False)
class Norm:
    """A norm on the stream.

    Attributes:
        name: Path of its module.
        module: The norm.
        kind: `rms`: gain * x / rms(x); `layer`: gain * (x - mean) / std(x) + bias.
        plus: Added to the stored gain.
        readers: The linear maps that read what it gives.
    """

    name: str
    module: nn.Module
    kind: Literal["rms", "layer"]
    plus: float = 0.0
    readers: list[Dense] = field(default_factory=list)

    @property
    def gain(self) -> Tensor | None:
        """The stored gain; None where the norm has none."""
        return self.module._parameters.get("weight")

    @property
    def bias(self) -> Tensor | None:
        """None where the norm has none."""
        return self.module._parameters.get("bias")

    @property
    def eps(self) -> float | None:
        """What is added to the mean square."""
        return next((float(e) for k in _EPS if isinstance(e := getattr(self.module, k, None), float)), None)

    @property
    def is_uniform(self) -> bool:
        """Whether all channels have the same gain, so that the norm commutes with a rotation."""
        return self.gain is None or bool((self.gain == self.gain[0]).all())


@dataclass(eq=False)
class Stream:
    """Everything that touches the residual stream.

    Attributes:
        tables: Embeddings that write it.
        embed_norm: A norm on the token embedding that writes the stream.
        writers: Linear maps whose output is added to it.
        norms: Norms that stand between the stream and its readers.
        bare: Linear maps that read it without a norm.
        commuting: Norms whose output is added to the stream and that have one gain for all channels.
        head: The head, where it reads the stream's final norm.
        is_tied: The head's weight is the embedding.
    """

    width: int
    tables: list[Table] = field(default_factory=list)
    embed_norm: Norm | None = None
    writers: list[Dense] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    bare: list[Dense] = field(default_factory=list)
    commuting: list[Norm] = field(default_factory=list)
    head: Dense | None = None
    is_tied: bool = False

    @property
    def keeps_ones(self) -> bool:
        """Whether a rotation must keep the all-ones vector: a LayerNorm takes the mean away."""
        norms = [*self.norms, *self.commuting, *([self.embed_norm] if self.embed_norm else [])]
        return any(norm.kind == "layer" for norm in norms)

    @property
    def can_centre(self) -> bool:
        """Whether nobody sees the stream's mean over channels, so that the writers need not write it."""
        return not self.bare and all(norm.kind == "layer" for norm in (*self.norms, *self.commuting))


def find_stream(anatomy: Anatomy) -> Stream:
    """The residual stream of a model, checked by one forward.

    Raises:
        NotPossible: It cannot be rotated; the message says why.
    """
    _refuse_by_declaration(anatomy)
    trace = record(anatomy)
    return _Finder(anatomy, trace).find()


def one_per_parameter(maps: Iterable[Dense]) -> list[Dense]:
    """The experts of one parameter stand for one another; the first of each is kept."""
    return list({id(dense.parameter): dense for dense in reversed(list(maps))}.values())[::-1]


def _refuse_by_declaration(anatomy: Anatomy) -> None:
    name = anatomy.family
    for site, bound in sorted(anatomy.matrices.items()):
        if site.part in ("norm.attn.resid", "norm.mlp.resid"):
            raise NotPossible(
                f"{name}: the residual stream cannot be rotated: its blocks are post-norm. {site} writes the stream with a gain per "
                "channel, which a rotation does not commute with; v/o can be rotated"
            )
        if site.part in ("norm.attn.add", "norm.mlp.add") and not _is_uniform(bound):
            raise NotPossible(
                f"{name}: the residual stream cannot be rotated: the norms stand behind attention and feed-forward and have gains that "
                f"a rotation does not commute with ({site} comes first); v/o can be rotated"
            )
    if Site(None, "w.embed") not in anatomy.matrices:
        raise NotPossible(f"{name}: the residual stream cannot be rotated: no embedding was placed (w.embed)")
    if not blocks_of(anatomy):
        raise NotPossible(f"{name}: the residual stream cannot be rotated: its blocks were not placed")
    if anatomy.model is anatomy.trunk or anatomy.model.get_output_embeddings() is None:  # type: ignore[operator]
        raise NotPossible(
            f"{name}: the residual stream cannot be rotated: the model has no head, so its last hidden state is its output and would "
            "be rotated too; load it with its head"
        )


def _is_uniform(bound: BoundMatrix) -> bool:
    return bool((bound.parameter == bound.parameter.reshape(-1)[0]).all())


class _Finder:
    def __init__(self, anatomy: Anatomy, trace: Trace) -> None:
        self.anatomy, self.trace = anatomy, trace
        self.stream = Stream(anatomy.dims.hidden)
        self.paths = {id(m): path for path, m in anatomy.model.named_modules()}
        self.sites = {id(b.parameter): site for site, b in anatomy.matrices.items()}
        self.maps = dense_maps(anatomy, routers=True, head=True)
        self.norms: dict[int, Norm] = {}
        # Memory of what the readers read: the stream itself, and norms of it.
        self.read: dict[tuple[int, int], str] = {}

    def refuse(self, why: str) -> NotPossible:
        return NotPossible(f"{self.anatomy.family}: the residual stream cannot be rotated: {why}")

    def find(self) -> Stream:
        blocks = blocks_of(self.anatomy)
        self._embedding(self.trace.one(blocks[0]))
        for layer, block in enumerate(blocks):
            self._block(layer, self.trace.one(block))
            if layer and not self._spans(self.trace.one(block).x, [self.trace.one(blocks[layer - 1]).y]):
                raise self.refuse(f"block {layer} does not read what block {layer - 1} writes")
        self._head(self.trace.one(blocks[-1]).y)
        self.stream.norms = [n for n in self.norms.values() if n.readers]
        self._no_other_readers()
        return self.stream

    def _embedding(self, first: Call) -> None:
        outer = {
            p: self._owner(Site(None, p)) for p in ("w.embed", "w.embed.project", "w.position", "w.type")
        }
        project = outer.pop("w.embed.project")
        if project is not None:
            outer.pop("w.embed")
            self.stream.writers.append(
                Dense(self.paths[id(project[0])], *project, None, Site(None, "w.embed.project"))
            )
        tables = [Table(self.paths[id(o[0])], *o) for o in outer.values() if o is not None]
        self.stream.tables = [t for t in tables if self.trace.calls(t.module)]
        written = [
            self.trace.one(m).y
            for m in (*(t.module for t in self.stream.tables), *([project[0]] if project else []))
        ]
        if self._spans(first.x, written):
            return
        found = self._norm(first.x_key, first.x, written)
        if found is None:
            raise self.refuse("what the first block reads is not the sum of the embeddings, nor a norm of it")
        if found.is_uniform:
            self.stream.commuting.append(found)
        elif len(written) > 1 or project is not None or found.eps is None:
            raise self.refuse(
                f"{found.name} writes the stream with a gain per channel, and what it reads is more than one table, so it cannot be "
                "folded into the embedding"
            )
        else:
            self.stream.embed_norm = found

    def _block(self, layer: int, block: Call) -> None:
        attention, feed_forward = (self._added(layer, part) for part in ("attn", "mlp"))
        if not self._spans(block.y, [block.x, attention, feed_forward]):
            raise self.refuse(
                f"block {layer} does more than add: resid.out is no sum of resid.in and what attention and feed-forward write"
            )
        for dense in one_per_parameter(d for d in self.maps if d.layer == layer):
            pieces = set(dense.pieces)
            if pieces & {"w.o", "w.down"}:
                self.stream.writers.append(dense)
            elif dense.reads.part in _READ:
                module = self.anatomy.experts[layer] if dense.is_routed else dense.module
                self._reader(dense, self.trace.one(module), [block.x, attention])

    def _added(self, layer: int, part: str) -> Tensor:
        """What one half of a block adds to the stream, up to a factor."""
        behind = self._owner(Site(layer, f"norm.{part}.add"))
        tap = self.anatomy.taps.get(Site(layer, f"{part}.out"))
        if tap is None:
            raise self.refuse(f"{layer}.{part}.out was not placed")
        call = self.trace.one(tap.module)
        if behind is None:
            return call.y if tap.tap.side == "output" else call.x
        after = self.trace.one(behind[0])
        norm = self._norm(after.y_key, after.y, [call.y])
        if norm is None:
            raise self.refuse(
                f"{self.paths[id(behind[0])]} is neither an RMSNorm nor a LayerNorm of {layer}.{part}.out"
            )
        self.stream.commuting.append(norm)
        return after.y

    def _reader(self, dense: Dense, call: Call, parts: Sequence[Tensor]) -> None:
        if self._spans(call.x, parts):
            self.stream.bare.append(dense)
            self.read[call.x_key] = dense.name
            return
        norm = self._norm(call.x_key, call.x, parts)
        if norm is None:
            raise self.refuse(f"{dense.name} reads neither the stream nor an RMSNorm or LayerNorm of it")
        norm.readers.append(dense)
        self.read[call.x_key] = norm.name

    def _head(self, last: Tensor) -> None:
        project = self._owner(Site(None, "w.head.project"))
        head = self.anatomy.model.get_output_embeddings()  # type: ignore[operator]
        module, key = project or (head, "weight")
        dense = Dense(self.paths[id(module)], module, key, None, Site(None, "head.in"))
        self._reader(dense, self.trace.one(module), [last])
        if project is None:
            self.stream.head = dense
            self.stream.is_tied = any(t.parameter is dense.parameter for t in self.stream.tables)

    def _owner(self, site: Site) -> tuple[nn.Module, str] | None:
        bound = self.anatomy.matrices.get(site)
        return None if bound is None else self.trace.owners.get(id(bound.parameter))

    def _spans(self, y: Tensor, parts: Sequence[Tensor]) -> bool:
        """Whether y is a combination of the parts with one factor each."""
        if any(p.shape[-1] != y.shape[-1] or p.numel() != y.numel() for p in parts):
            return False
        a = torch.stack([p.double().reshape(-1) for p in parts], 1)
        b = y.double().reshape(-1)
        # Parts that are equal or zero make the system singular; the projection is still defined.
        rest = b - a @ torch.linalg.lstsq(a, b[:, None], driver="gelsd").solution[:, 0]
        return bool(rest.norm() <= self.trace.tolerance * b.norm())

    def _norm(self, key: tuple[int, int], y: Tensor, parts: Sequence[Tensor]) -> Norm | None:
        """The norm that gave y, of a combination of the parts; None where y was made otherwise."""
        for call in self.trace.made.get(key, ()):
            if id(call.module) in self.norms:
                return self.norms[id(call.module)]
            if set(call.module._parameters) - {"weight", "bias"} or not self._spans(call.x, parts):
                continue
            norm = Norm(self.paths[id(call.module)], call.module, "rms")
            if norm.gain is not None and id(norm.gain) in self.sites:
                norm.plus = self.anatomy.matrices[self.sites[id(norm.gain)]].matrix.plus
            # Where x has next to no mean both are near; the nearer one is what is computed.
            wrong = {}
            for kind in ("rms", "layer"):
                norm.kind = kind  # type: ignore[assignment]
                wrong[kind] = self._error(norm, call.x, y)
            norm.kind = min(wrong, key=lambda k: wrong[k])  # type: ignore[assignment,arg-type]
            if wrong[norm.kind] <= self.trace.tolerance:
                self.norms[id(call.module)] = norm
                return norm
        return None

    def _error(self, norm: Norm, x: Tensor, y: Tensor) -> float:
        """How far y is from gain * c / sqrt(mean(c^2) + eps) + bias with c = x or x without its mean, for any factor per token.

        Infinite where the factors belong to no eps.
        """
        x, y = x.double().reshape(-1, x.shape[-1]), y.double().reshape(-1, y.shape[-1])
        c = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
        gain = torch.ones(len(c[0])).to(c) if norm.gain is None else norm.gain.detach().double() + norm.plus
        y = y if norm.bias is None else y - norm.bias.detach().double()
        shape = c * gain
        factor = (y * shape).sum(-1) / shape.square().sum(-1)
        wrong = float((y - factor[:, None] * shape).norm() / y.norm())
        eps = factor.square().reciprocal() - c.square().mean(-1)
        spread = (eps - eps.median()).abs() * factor.square()
        return wrong if bool((spread <= 100 * self.trace.tolerance).all()) else float("inf")

    def _no_other_readers(self) -> None:
        """Refuse a module that reads the stream or a norm of it, has weights of its width and is not among the readers."""
        known: set[int] = {id(d.module) for d in (*self.stream.writers, *self.stream.bare)}
        known |= {id(d.module) for n in self.stream.norms for d in n.readers}
        known |= {id(m) for m in self.norms} | set(self.norms) | {id(t.module) for t in self.stream.tables}
        width = self.stream.width
        read: dict[tuple[int, int], list[str]] = defaultdict(list)
        for key, name in self.read.items():
            read[key].append(name)
        for call in self.trace.all:
            own: dict[str, Any] = {k: p for k, p in call.module._parameters.items() if p is not None}
            strange = [k for k, p in own.items() if width in p.shape and id(p) not in self.sites]
            if id(call.module) not in known and strange and call.x_key in read:
                raise self.refuse(
                    f"{self.paths[id(call.module)]} reads the same tensor as {read[call.x_key][0]}, and its {strange[0]} has no site"
                )
