"""One layer's attention as its softmax sees it, and its logits and weights from the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# An additive mask at or below this hides the key: models write finfo.min, -inf, -1e9 or -1e4; distance biases stay far above.
HIDDEN = -5000.0


@dataclass(frozen=True)
class AttentionView:
    """One layer's attention as its softmax sees it. Either query and key are given, or logits.

    Attributes:
        layer: Block number from 0.
        num_heads: Query heads; grouped keys are not expanded: query head h reads key head h * num_kv_heads // num_heads.
        scale: Factor on the product of query and key.
        softcap: Logits are softcap * tanh(logits / softcap) before masking; None without.
        sink_logits: Logits that take mass without being a key, per head or per sample, head and query; None without.
        mask: Bool, True where visible, or additive; broadcasts to [sample, head, query, key]; None without.
        is_causal: Whether query i sees only keys up to i (on top of `mask`).
        query: After rotation and norms.
        key: After rotation and norms.
        value: None where the architecture hides it.
        logits: Scaled and masked scores, where the model computes them itself.
        weights: Rule from the masked logits to the attention weights where it is not softmax; rows need not sum to one.
    """

    layer: int
    num_heads: int
    scale: float
    softcap: float | None
    sink_logits: Tensor | None
    mask: Tensor | None
    is_causal: bool
    query: Float[Tensor, "sample head query channel"] | None
    key: Float[Tensor, "sample kv_head key channel"] | None
    value: Float[Tensor, "sample kv_head key value_channel"] | None
    logits: Float[Tensor, "sample head query key"] | None
    weights: Callable[[Tensor], Tensor] | None = None

    def sinks(self, samples: slice = slice(None), queries: slice = slice(None)) -> Tensor | None:
        """Logits of the sink for some samples and queries, broadcasting to [sample head query]; None without a sink."""
        if self.sink_logits is None or self.sink_logits.dim() == 1:
            return None if self.sink_logits is None else self.sink_logits[None, :, None]
        return self.sink_logits[samples, :, queries]


def naive_logits(view: AttentionView) -> Float[Tensor, "sample head query key"]:
    """The logits that the softmax reads, -inf where masked; for tests and single sequences: it is quadratic in memory."""
    if view.logits is not None:
        # Masks add the smallest number of the dtype, or a number like -1e4 that no logit comes near.
        return view.logits.masked_fill(view.logits <= HIDDEN, -math.inf)
    assert view.query is not None and view.key is not None
    key = view.key.repeat_interleave(view.query.shape[1] // view.key.shape[1], dim=1)
    logits = (view.query @ key.transpose(-1, -2)) * view.scale
    if view.softcap is not None:
        logits = view.softcap * torch.tanh(logits / view.softcap)
    if view.mask is not None:
        logits = (
            logits.masked_fill(~view.mask, -math.inf)
            if view.mask.dtype == torch.bool
            else (logits + view.mask).masked_fill(view.mask <= HIDDEN, -math.inf)
        )
    if view.is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(future, -math.inf)
    return logits


def naive_probs(view: AttentionView) -> Float[Tensor, "sample head query key"]:
    """The attention weights, without the share of a learned sink; NaN where a query sees no key; for tests and single sequences."""
    logits = naive_logits(view)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if view.weights is not None:
        return view.weights(logits)
    if view.sink_logits is None:
        return logits.softmax(dim=-1)
    sinks = view.sinks()
    assert sinks is not None
    sink = sinks.to(logits)[..., None].expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]
