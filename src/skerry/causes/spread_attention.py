"""Attention that goes to tokens which carry an outlier, and what it brings to the others.

    mass_i = sum over carrying keys k of p_ik      brought_i = sum over carrying keys k of p_ik v_k      reach_i = |W_o brought_i| / |attn.out_i|

at queries i that do not carry and can see a key that does. A head's reach is that of its own columns of W_o. Logits exist for a few
queries at a time.
Limit: equal logits give the mass that is its `other`, the share of carrying keys among those that the query can see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from skerry.anatomy.attention import HIDDEN, AttentionView

# Logits in hand at once: 16 MB each time they are copied.
AT_ONCE = 2**22


class Block(NamedTuple):
    """Logits of some queries.

    Attributes:
        samples: Which inputs of the view.
        queries: Which queries.
        logits: As the softmax reads them, -inf where hidden.
    """

    samples: slice
    queries: slice
    logits: Float[Tensor, "sample head query key"]


class Keys(NamedTuple):
    """The carrying keys of each input, padded to the same number.

    Attributes:
        place: Where; 0 where padded.
        valid: False where padded.
    """

    place: Int[Tensor, "sample number"]
    valid: Bool[Tensor, "sample number"]

    @classmethod
    def of(cls, mask: Bool[Tensor, "sample key"]) -> Keys:
        """From a mask."""
        most = max(1, int(mask.sum(1).max())) if len(mask) else 1
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :most]
        valid = mask.gather(1, order)
        return cls(order.masked_fill(~valid, 0), valid)

    def logits(self, block: Block) -> Float[Tensor, "sample head query number"]:
        """Those of the block, -inf where padded or hidden."""
        index = self.place[block.samples].to(block.logits.device)[:, None, None, :]
        valid = self.valid[block.samples].to(block.logits.device)[:, None, None, :]
        found = block.logits.gather(-1, index.expand(*block.logits.shape[:-1], -1))
        return found.masked_fill(~valid, -math.inf)


def blocks(view: AttentionView, samples: slice = slice(None), most: int = AT_ONCE) -> Iterator[Block]:
    """The logits of some inputs, a few queries or inputs at a time."""
    num_samples, num_heads, num_queries, num_keys = logits_shape(view)
    first, last, _ = samples.indices(num_samples)
    step = max(1, most // max(1, num_heads * num_queries * num_keys))
    rows = max(1, most // max(1, step * num_heads * num_keys))
    for low in range(first, last, step):
        some = slice(low, min(last, low + step))
        for start in range(0, num_queries, rows):
            queries = slice(start, min(num_queries, start + rows))
            yield Block(some, queries, _logits(view, some, queries))


def logits_shape(view: AttentionView) -> tuple[int, int, int, int]:
    """[sample, head, query, key] that the logits have, or would have."""
    if view.logits is not None:
        return tuple(view.logits.shape)  # type: ignore[return-value]
    assert view.query is not None and view.key is not None
    return (*view.query.shape[:3], view.key.shape[2])  # type: ignore[return-value]


def _logits(view: AttentionView, samples: slice, queries: slice) -> Tensor:
    if view.logits is not None:
        logits = _exact(view.logits[samples, :, queries])
        return logits.masked_fill(logits <= HIDDEN, -math.inf)
    assert view.query is not None and view.key is not None
    query, key = _exact(view.query[samples, :, queries]), _exact(view.key[samples])
    grouped = query.reshape(len(key), key.shape[1], -1, key.shape[3])
    logits = (grouped @ key.transpose(-1, -2)).mul_(view.scale).reshape(*query.shape[:3], key.shape[2])
    if view.softcap is not None:
        logits = torch.tanh(logits / view.softcap).mul_(view.softcap)
    if view.mask is not None:
        full = view.mask.reshape((1,) * (4 - view.mask.ndim) + tuple(view.mask.shape))
        mask = full[samples if len(full) > 1 else slice(None)]
        mask = mask[:, :, queries] if mask.shape[2] > 1 else mask
        if mask.dtype == torch.bool:
            logits = logits.masked_fill_(~mask, -math.inf)
        else:
            logits = logits.add_(mask).masked_fill_(mask <= HIDDEN, -math.inf)
    if view.is_causal:
        keys = torch.arange(logits.shape[-1], device=logits.device)
        logits = logits.masked_fill_(keys > keys[queries, None], -math.inf)
    return logits


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Given(NamedTuple):
    """What each query gives to carrying keys.

    Attributes:
        mass: Attention.
        uniform: The same if all visible keys, and a learned sink, got equal attention.
        brought: sum of p_k v_k; None where the architecture shows no values.
        sees: Whether the query can see a carrying key.
        is_broken: Whether a query that sees keys has logits that are not finite.
    """

    mass: Float[Tensor, "sample head query"]
    uniform: Float[Tensor, "sample head query"]
    brought: Float[Tensor, "sample head query channel"] | None
    sees: Bool[Tensor, "sample head query"]
    is_broken: bool


def given(view: AttentionView, at: Bool[Tensor, "sample key"]) -> Given:
    """Read one layer of one forward."""
    keys = Keys.of(at)
    value = None if view.value is None else _values_at(view, keys)
    parts: dict[int, list[list[Tensor]]] = {}
    broken = False
    for block in blocks(view):
        found = keys.logits(block)
        total = _total(view, block)
        p = (found - total[..., None]).exp()
        if view.weights is not None:  # of its own rule, hidden keys at zero
            p = keys.logits(block._replace(logits=view.weights(block.logits))).clamp(min=0)
        visible = (found > -math.inf).sum(-1)
        options = (block.logits > -math.inf).sum(-1) + (view.sink_logits is not None)
        # A query that sees nothing has no softmax; one with logits that are not finite has no number, and is left out as NaN.
        p = torch.where((options > 0)[..., None], p, 0.0)
        broken |= bool((total.isnan() | total.isposinf()).any())
        row = [p.sum(-1), visible / options.clamp(min=1), visible > 0]
        if value is not None:
            row.append(p @ value[block.samples].to(p))
        parts.setdefault(block.samples.start, []).append(row)
    whole = [
        torch.cat([torch.cat(pieces, dim=2) for pieces in column])
        for column in zip(*(list(zip(*rows, strict=True)) for rows in parts.values()), strict=True)
    ]
    return Given(whole[0], whole[1], whole[3] if value is not None else None, whole[2], broken)


def _total(view: AttentionView, block: Block) -> Tensor:
    """Log of the softmax's denominator."""
    total = block.logits.logsumexp(-1)
    sink = view.sinks(block.samples, block.queries)
    return total if sink is None else torch.logaddexp(total, sink.to(total))


def _values_at(view: AttentionView, keys: Keys) -> Float[Tensor, "sample head number channel"]:
    """Value vectors at the carrying keys, per query head."""
    assert view.value is not None
    value = _exact(view.value)
    index = keys.place.to(value.device)[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[3])
    return value.gather(2, index).repeat_interleave(view.num_heads // value.shape[1], dim=1)


def mix_of_one(view: AttentionView, sample: int, query: int) -> Float[Tensor, "head channel"]:
    """What the heads give one query, recomputed: to check that nothing lies between it and the output projection."""
    assert view.value is not None
    logits = _logits(view, slice(sample, sample + 1), slice(query, query + 1))
    block = Block(slice(sample, sample + 1), slice(query, query + 1), logits)
    other = view.weights is not None
    p = view.weights(logits) if other else (logits - _total(view, block)[..., None]).exp()  # type: ignore[misc]
    p = p.nan_to_num(0.0)
    value = _exact(view.value[sample]).repeat_interleave(view.num_heads // view.value.shape[1], dim=0)
    return (p[0] @ value.to(p))[:, 0]


def value_norm_ratio(
    value: Shaped[Tensor, "sample kv_head key channel"],
    at: Bool[Tensor, "sample key"],
    keep: Bool[Tensor, "sample key"],
    num_heads: int,
) -> Float[Tensor, "sample head"]:
    """Mean norm of the value vectors that carry / of all others in the input, each query head under its key head's number."""
    norm = torch.linalg.vector_norm(_exact(value), dim=-1).cpu().double()
    ratio = mean_where(norm, at[:, None]) / mean_where(norm, (keep & ~at)[:, None])
    return ratio.repeat_interleave(num_heads // value.shape[1], dim=1)


class Reach(NamedTuple):
    """Relative size of what reaches a token: [token, 1 + head], all heads together first.

    Attributes:
        carried: From carrying keys.
        rest: From all other keys.
    """

    carried: Float[Tensor, "token column"]
    rest: Float[Tensor, "token column"]


def reach(
    brought: Float[Tensor, "token channel"],
    mix: Float[Tensor, "token channel"],
    out: Float[Tensor, "token hidden"],
    weight: Float[Tensor, "hidden channel"],
    num_heads: int,
) -> Reach:
    """|W_o x| / |attn.out| for x = what carrying keys bring, and for the rest of what the heads give."""
    size = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
    per_head = weight.unflatten(1, (num_heads, -1)).permute(1, 0, 2)
    squared = per_head.transpose(1, 2) @ per_head  # |W x|^2 = x . (W'W x), and a head is narrow

    def norms(x: Tensor) -> Tensor:
        whole = torch.linalg.vector_norm(x @ weight.T, dim=-1, keepdim=True)
        heads = x.unflatten(1, (num_heads, -1)).transpose(0, 1)
        own = ((heads @ squared) * heads).sum(-1).clamp(min=0.0).sqrt().T
        return torch.cat([whole, own], dim=1) / size

    return Reach(norms(brought), norms(mix - brought))


def mean_where(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*more"]) -> Float[Tensor, "*fewer"]:
    """Mean over the last axis where the mask, which broadcasts, is true; NaN where it never is."""
    mask = mask.expand_as(x)
    return torch.where(mask, x, 0.0).sum(-1) / mask.sum(-1)


def with_whole(heads: Float[Tensor, "sample head"]) -> np.ndarray:
    """[sample, 1 + head] with the mean over heads first."""
    heads = heads.cpu().double()
    return torch.cat([heads.nanmean(1, keepdim=True), heads], dim=1).numpy()
