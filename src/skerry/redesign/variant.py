"""What an attention variant may change: five moments of one attention, each plain softmax attention's where a variant says nothing.

    x -> q, k, v -> `before` -> positions -> `mask_of`, `sink`, `weights` -> attention -> `after` -> output projection

A variant is a module of its own, `self_attn.variant`, so its parameters are saved under that name. Softmax has none, and is LLaMA's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from skerry.redesign.attend import Sink, attend, in_one_type, logits
from skerry.redesign.config import DecoderConfig


class Heads(NamedTuple):
    """What attention reads, [sample head position channel] each.

    Attributes:
        query: Of every head.
        key: Of every key/value head.
        value: Of every key/value head.
    """

    query: Tensor
    key: Tensor
    value: Tensor


class Variant(nn.Module):
    """Plain softmax attention.

    Attributes:
        name: What configurations and the command line call it.
        source: Paper and section.
        is_fused: Runs on a fused kernel; others hold [sample head query key] in memory.
        scale: Factor on the logits; None for 1 / sqrt(channel).
        weights: Rule from the masked logits to the weights where it is not softmax; None for softmax. Such variants have no sink.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    is_fused: ClassVar[bool] = True
    scale: float | None = None
    weights: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: DecoderConfig, layer: int, **options: Any) -> None:
        """Options are the variant's own; an unknown one is a TypeError that the decoder turns into an error for users."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )

    def reset(self, std: float) -> None:
        """Set the variant's own parameters to their starting values; linear layers are initialised like all others."""

    def before(self, heads: Heads, x: Tensor) -> Heads:
        """Change queries, keys or values, before positions are applied; x is what the projections read, [sample position channel]."""
        return heads

    def sink(self, query: Tensor) -> Sink | None:
        """A sink in the softmax, from the queries after positions."""
        return None

    def mask_of(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask, bool [sample 1 query key], True where visible, None for causal; changed by variants that see less."""
        return mask

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
        """[sample head query channel]; the mask as `mask_of` gave it."""
        if self.weights is None:
            return attend(query, key, value, mask=mask, scale=self.scale, sink=self.sink(query))
        query, key, value = in_one_type(query, key, value)
        scores = logits(query, key, mask=mask, is_causal=True, scale=self.scale)
        groups = query.shape[1] // key.shape[1]
        value = value if groups == 1 else value.repeat_interleave(groups, dim=1)
        return self.weights(scores).to(value.dtype) @ value

    def sink_logits(self, query: Tensor) -> Tensor | None:
        """What observers of attention are told of the sink: nothing of one that leaves the tokens their weights."""
        sink = self.sink(query)
        return None if sink is None or sink.is_added else sink.logit

    def shown(self, query: Tensor) -> Tensor:
        """The queries that observers of attention are shown; others than it has only where there are several maps."""
        return query

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        """Change the heads' outputs [sample position head channel]; x as in `before`."""
        return y
