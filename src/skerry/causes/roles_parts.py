"""What a sink does to a head, taken apart, and the changes that keep one part of it and freeze or drop another.

For a query with attention p on sinks, s = 1 - p, the output of a head is an identity (`mix` is what the output projection reads):

    mix = s r + b,    b = sum over sinks of p_k v_k,    r = sum over other keys of p_k v_k / s    (0 where s = 0)

A learned sink logit is in p with a value of zero. Each arm of the test replaces s by its mean, or b by its mean or by nothing:

    arm                   s       b       what is left of the sinks
    fixed bias            own     mean    scaling and a constant: without cost if the bias need not know its context
    context-aware bias    mean    own     bias: without cost if the scale is irrelevant
    implicit scaling      own     none    scaling: without cost if the bias is irrelevant
    both frozen           mean    mean    a constant
    neither               mean    none    nothing: what the sinks are for altogether

Means are over all queries of all inputs that are neither sinks nor padding, one per head, from the untouched model. A change is added to
`mix` and computed from p, r and b alone, so an arm that has nothing to change adds exactly 0. Sink queries and padding keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.attention import AttentionView, naive_probs
from skerry.anatomy.change import Edit, change
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.interventions import Intervention
from skerry.causes.sinks import Sinks
from skerry.corpus.batch import Batch


class Arm(NamedTuple):
    """What an arm leaves of the sinks: `bias` is own, mean or none."""

    own_scale: bool
    bias: str


ARMS: dict[str, Arm] = {
    "fixed bias": Arm(True, "mean"),
    "context-aware bias": Arm(False, "own"),
    "implicit scaling": Arm(True, "none"),
    "both frozen": Arm(False, "mean"),
    "neither": Arm(False, "none"),
}


@dataclass(frozen=True)
class Terms:
    """The parts of one layer's heads in one forward, float32.

    Attributes:
        mass: p.
        bias: b.
        rest: r.
        queries: Which queries count: neither sink nor padding.
        sink: Which keys are sinks.
        value_norm: Euclidean norm of each key's value.
        learned: Whether a learned logit is one more sink, of value zero.
    """

    mass: Float[Tensor, "sample head query"]
    bias: Float[Tensor, "sample head query channel"]
    rest: Float[Tensor, "sample head query channel"]
    queries: Bool[Tensor, "sample query"]
    sink: Bool[Tensor, "sample query"]
    value_norm: Float[Tensor, "sample head query"]
    learned: bool

    @property
    def scale(self) -> Float[Tensor, "sample head query"]:
        """The attention on ordinary keys, s = 1 - p."""
        return 1.0 - self.mass

    @property
    def output(self) -> Float[Tensor, "sample head query channel"]:
        """What the output projection reads, s r + b."""
        return self.scale[..., None] * self.rest + self.bias


@dataclass(frozen=True)
class Means:
    """Means over contexts of one layer's heads.

    Attributes:
        scale: Of s.
        bias: Of b.
        rest: Of r.
        output: Of s r + b.
    """

    scale: Float[Tensor, "head"]
    bias: Float[Tensor, "head channel"]
    rest: Float[Tensor, "head channel"]
    output: Float[Tensor, "head channel"]


@torch.no_grad()
def read_terms(view: AttentionView, sink: Bool[Tensor, "sample key"], keep: Tensor) -> Terms:
    """The parts of one layer; r is summed over the other keys and not taken from a difference, which would lose it where s is small.

    Raises:
        ValueError: The architecture shows no values.
    """
    if view.value is None:
        raise ValueError(f"layer {view.layer} shows no value vectors, so what its sinks bring is unknown")
    probs = naive_probs(view).nan_to_num(0.0).float()
    sink = sink.to(probs.device)
    value = view.value.float().repeat_interleave(view.num_heads // view.value.shape[1], dim=1)
    on_sinks = probs * sink[:, None, None, :]
    others = probs - on_sinks
    scale = others.sum(-1, keepdim=True)
    rest = torch.where(scale > 0, (others @ value) / scale.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    learned = view.sink_logits is not None
    return Terms(
        mass=(1.0 - scale[..., 0] if learned else on_sinks.sum(-1)).clamp(0.0, 1.0),
        bias=on_sinks @ value,
        rest=rest,
        queries=keep.to(probs.device) & ~sink,
        sink=sink,
        value_norm=value.norm(dim=-1),
        learned=learned,
    )


def delta(arm: Arm, terms: Terms, means: Means, heads: Sequence[int]) -> Float[Tensor, "row width"]:
    """What an arm adds to `attn.mix` [token, head * channel]; 0 in all other heads, at sinks and at padding."""
    added = torch.zeros_like(terms.bias)
    for h in heads:
        change_of_head = torch.zeros_like(terms.bias[:, h])
        if not arm.own_scale:
            change_of_head += (means.scale[h] - terms.scale[:, h])[..., None] * terms.rest[:, h]
        if arm.bias == "mean":
            change_of_head += means.bias[h] - terms.bias[:, h]
        elif arm.bias == "none":
            change_of_head -= terms.bias[:, h]
        added[:, h] = change_of_head
    return rows_of_heads(added * terms.queries[:, None, :, None])


def rows_of_heads(x: Float[Tensor, "sample head query channel"]) -> Float[Tensor, "row width"]:
    """As the output projection reads it: [token, head * channel]."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


@dataclass(frozen=True)
class Moved:
    """Gives each query's change to another query of the batch, chosen at random: the matched control.

    Attributes:
        order: Flat queries in random order: each receives what the one before it had, the first what the last had.
    """

    order: Tensor

    @classmethod
    def drawn(cls, queries: Bool[Tensor, "sample query"], generator: torch.Generator) -> Moved:
        """Over the queries that count. Nobody keeps its own, so the energy of the change is the same and its place is not."""
        flat = queries.reshape(-1).cpu().nonzero()[:, 0]
        return cls(flat[torch.randperm(len(flat), generator=generator)])

    def __call__(self, added: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """The same rows at other queries, 0 elsewhere."""
        moved = torch.zeros_like(added)
        order = self.order.to(added.device)
        moved[order] = added[order.roll(1)]
        return moved


def add_to_mix(
    anatomy: Anatomy, layer: int, heads: Sequence[int], added: Float[Tensor, "row width"]
) -> Intervention:
    """Add fixed numbers to what the output projection of one layer reads."""

    def edit(x: Tensor, _rows: Tensor | None) -> Tensor:
        return (x.float() + added.to(x.device)).to(x.dtype)

    return Intervention(
        lambda: change(anatomy, {Site(layer, "attn.mix"): edit}),
        first_layer=layer,
        what=f"change of heads {list(heads)} of block {layer}",
    )


def add_from_current(
    anatomy: Anatomy,
    layers: Sequence[int],
    sinks: Sinks,
    batch: Batch,
    compute: Callable[[int, Terms], Tensor],
) -> Intervention:
    """Add to `attn.mix` of several layers what `compute` makes of the parts of the running, already changed, forward."""

    @contextmanager
    def opened() -> Iterator[None]:
        seen: dict[int, Terms] = {}

        def edit_of(layer: int) -> Edit:
            return lambda x, _rows: (x.float() + compute(layer, seen.pop(layer))).to(x.dtype)

        edits = {Site(layer, "attn.mix"): edit_of(layer) for layer in layers}
        with reading(anatomy, layers, sinks, batch, seen.__setitem__), change(anatomy, edits):
            yield

    return Intervention(
        opened, first_layer=min(layers, default=anatomy.dims.num_layers), what=f"change of blocks {layers}"
    )


@contextmanager
def reading(
    anatomy: Anatomy,
    layers: Sequence[int],
    sinks: Sinks,
    batch: Batch,
    found: Callable[[int, Terms], None],
) -> Iterator[None]:
    """Tell the parts of these layers in every forward while open."""

    def look(view: AttentionView) -> None:
        if view.layer in layers:
            found(view.layer, read_terms(view, sinks.mask(view.layer, batch), batch.keep))

    with watch(anatomy, (), on_attention=look):
        yield
