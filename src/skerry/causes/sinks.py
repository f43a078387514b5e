"""Attention sinks as a trace needs them: which keys they are, how much each query gives them, what they bring.

With p the attention that a query gives to sink keys, the head's output is (1 - p) (normalised rest) + sum over sinks of p_k v_k: an
identity, which is what makes the hypotheses about sinks measurable. A learned sink logit (gpt-oss) takes attention and brings nothing:
it is in p with a value of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.attention import AttentionView, naive_logits, naive_probs
from skerry.corpus.batch import Batch
from skerry.errors import UnknownSite
from skerry.outliers.finding import Finding


@dataclass(frozen=True)
class Sinks:
    """The sinks of one model.

    Attributes:
        positions: Layer to sink positions.
        token_ids: Layer to token ids that are sinks wherever they stand.
        learned: Layers with learned sink logits.
    """

    positions: dict[int, frozenset[int]] = field(default_factory=dict)
    token_ids: dict[int, frozenset[int]] = field(default_factory=dict)
    learned: frozenset[int] = frozenset()

    @classmethod
    def from_findings(cls, findings: Iterable[Finding], *, learned: Iterable[int] = ()) -> Sinks:
        """The sink positions and sink tokens among the findings of a scan."""
        positions: dict[int, set[int]] = {}
        token_ids: dict[int, set[int]] = {}
        for f in findings:
            if f.type == "sink position" and f.layer is not None and f.position is not None:
                positions.setdefault(f.layer, set()).add(f.position)
            if f.type == "sink token" and f.layer is not None and f.token_id is not None:
                token_ids.setdefault(f.layer, set()).add(f.token_id)
        return cls(
            {layer: frozenset(found) for layer, found in sorted(positions.items())},
            {layer: frozenset(found) for layer, found in sorted(token_ids.items())},
            frozenset(learned),
        )

    @property
    def layers(self) -> list[int]:
        """Layers with any sink, ascending."""
        return sorted({*self.positions, *self.token_ids, *self.learned})

    def mask(self, layer: int, batch: Batch) -> Bool[Tensor, "sample key"]:
        """Which keys are sinks in this layer; padding never is."""
        # Positions count from the first token that is no padding, as in a scan.
        position = batch.keep.cumsum(dim=1) - 1
        chosen = torch.tensor(sorted(self.positions.get(layer, ())), dtype=position.dtype)
        sink = torch.isin(position, chosen)
        if ids := self.token_ids.get(layer):
            sink |= torch.isin(batch.input_ids, torch.tensor(sorted(ids), dtype=batch.input_ids.dtype))
        return sink & batch.keep


@dataclass(frozen=True)
class SinkPart:
    """What sinks do to the output of each head of one layer.

    Attributes:
        mass: p: attention that each query gives to sinks, learned ones included.
        bias: Sum over sinks of p_k v_k.
        rest: Computes what the head would give if it could not see sinks, from a softmax without them: where nearly all attention is
            on sinks, (mix - bias) / (1 - mass) has no correct digit.
    """

    mass: Float[Tensor, "sample head query"]
    bias: Float[Tensor, "sample head query channel"]
    rest: Callable[[], Tensor] | None = field(default=None, compare=False, repr=False)


def sink_part(view: AttentionView, sink: Bool[Tensor, "sample key"]) -> SinkPart:
    """Mass and bias of the sinks in one layer, at least float32; queries that see no key give 0.

    Raises:
        UnknownSite: The architecture shows no values.
    """
    if view.value is None:
        raise UnknownSite(
            f"block {view.layer} shows no value vectors, so what its sinks bring is unknown; this needs attn.v"
        )
    probs = _probs(view)
    sunk = probs * sink[:, None, None, :].to(probs.device)
    value = view.value.to(probs).repeat_interleave(view.num_heads // view.value.shape[1], dim=1)

    def rest() -> Tensor:
        logits = naive_logits(_precise(view))
        hidden = logits.masked_fill(sink[:, None, None, :].to(logits.device), -math.inf)
        return hidden.to(probs.dtype).softmax(-1).nan_to_num(0.0) @ value

    return SinkPart(_mass(view, probs, sunk), sunk @ value, rest)


def sink_mass(view: AttentionView, sink: Bool[Tensor, "sample key"]) -> Float[Tensor, "sample head query"]:
    """Attention that each query gives to sinks, learned ones included; queries that see no key give 0."""
    probs = _probs(view)
    return _mass(view, probs, probs * sink[:, None, None, :].to(probs.device))


def _mass(view: AttentionView, probs: Tensor, sunk: Tensor) -> Tensor:
    mass = sunk.sum(-1)
    # What is not on a key is on the learned sink.
    return (mass if view.sink_logits is None else mass + 1.0 - probs.sum(-1)).clamp(0.0, 1.0)


def _probs(view: AttentionView) -> Float[Tensor, "sample head query key"]:
    """Attention weights, 0 where a query sees no key."""
    return naive_probs(_precise(view)).nan_to_num(0.0)


def _precise(view: AttentionView) -> AttentionView:
    """The product of half-precision queries and keys in float32, as fused kernels compute it."""
    if view.query is None or view.key is None or view.query.dtype == torch.float64:
        return view
    return replace(view, query=view.query.float(), key=view.key.float())
