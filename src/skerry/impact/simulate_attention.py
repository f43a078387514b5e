"""The two products of attention and the cache of keys and values, quantized while open.

    attention   softmax(Q(q) Q(k)^T / sqrt d) -> p,   out = Q(p) Q(v)
    kv          k and v, after rotation and before grouped keys are expanded, are what the cache would give back

One grid per token is one per token and head: per row of a head's matrix. A grid per column is one per head and channel, over tokens
(keys in KIVI, Liu et al. 2024). Limit: without `attention` and `kv` nothing is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.attention_change import AttentionEdit, change_attention
from skerry.anatomy.model import Anatomy
from skerry.impact.quantize import fake_quantize, observe
from skerry.impact.rows import Frame, follow
from skerry.impact.scheme import Scheme, TensorSpec

HeadTensor = Float[Tensor, "sample head token channel"]


@contextmanager
def quantize_attention(anatomy: Anatomy, scheme: Scheme, *, keep_positions: int = 0) -> Iterator[None]:
    """Quantize attention and cache as the scheme says, in all blocks.

    Args:
        anatomy: A model whose attention can be changed.
        scheme: Its `attention` and `kv`.
        keep_positions: First positions whose keys, values and queries stay in full precision.
    """
    with follow(anatomy) as frame:

        def tensors(_layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if (kv := scheme.kv) is not None:
                key, value = (round_heads(x, kv, frame, keep=keep_positions) for x in (key, value))
            if (spec := scheme.attention) is not None:
                # Queries stand at the end of the keys: the cache comes before them.
                keep_queries = max(0, keep_positions - (key.shape[2] - query.shape[2]))
                query = round_heads(query, spec, frame, keep=keep_queries)
                key, value = (round_heads(x, spec, frame, keep=keep_positions) for x in (key, value))
            return query, key, value

        def probs(_layer: int, p: Tensor) -> Tensor:
            assert scheme.attention is not None
            return round_heads(p, scheme.attention, frame, keep=0)

        edit = AttentionEdit(tensors, None if scheme.attention is None else probs)
        with change_attention(anatomy.model, anatomy.attention, edit):
            yield


def round_heads(x: HeadTensor, spec: TensorSpec, frame: Frame, *, keep: int) -> HeadTensor:
    """Round one tensor of attention; its first `keep` tokens stay, and neither they nor padding stretch a range over tokens."""
    num_samples, num_heads, num_tokens, num_channels = x.shape
    by_column = spec.granularity == "column"
    rows = (
        x.transpose(1, 2).reshape(num_samples * num_tokens, -1) if by_column else x.reshape(-1, num_channels)
    )
    grid = None
    if by_column or spec.granularity == "tensor":
        counts = _counting(frame, num_samples, num_tokens, keep, x)
        if not bool(counts.any()):
            return x
        if not bool(counts.all()):
            counted = counts if by_column else counts[:, None].expand(-1, num_heads, -1)
            grid = observe(rows[counted.reshape(-1)], spec)
    new = fake_quantize(rows, spec, grid)
    if by_column:
        new = new.reshape(num_samples, num_tokens, num_heads, num_channels).transpose(1, 2)
    new = new.reshape(x.shape)
    return torch.cat([x[:, :, :keep], new[:, :, keep:]], dim=2) if keep else new


def _counting(
    frame: Frame, num_samples: int, num_tokens: int, keep: int, x: Tensor
) -> Bool[Tensor, "sample token"]:
    places = frame.places(num_samples * num_tokens, None)
    counts = torch.ones(num_samples, num_tokens, dtype=torch.bool, device=x.device)
    if places is not None:
        counts &= places.counts.reshape(num_samples, num_tokens).to(x.device)
    counts[:, :keep] = False
    return counts
