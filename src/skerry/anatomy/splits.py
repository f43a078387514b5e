"""Where q, k, v or gate, up lie inside one fused projection.

A split picks its piece along the last axis. The same split serves the activation ([token, out]) and the weight (turned to
[in, out]), so that both always mean the same channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dims:
    """The widths that sites and splits need.

    Attributes:
        num_layers: Blocks.
        hidden: Width of the residual stream.
        num_heads: Query heads; 0 in a model without attention.
        num_kv_heads: Key/value heads.
        head_dim: Channels of one head.
    """

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


Split = Callable[[Tensor, Dims], Tensor]


def contiguous_qkv(index: int) -> Split:
    """Piece `index` of [all queries | all keys | all values]."""

    def split(x: Tensor, dims: Dims) -> Tensor:
        sizes = [
            dims.num_heads * dims.head_dim,
            dims.num_kv_heads * dims.head_dim,
            dims.num_kv_heads * dims.head_dim,
        ]
        return x.split(sizes, dim=-1)[index]

    return split


def interleaved_qkv(index: int) -> Split:
    """Piece `index` of [head, (q, k, v), channel]: every head keeps its three pieces together."""

    def split(x: Tensor, dims: Dims) -> Tensor:
        return x.unflatten(-1, (dims.num_heads, 3, dims.head_dim))[..., index, :].flatten(-2)

    return split


def grouped_qkv(index: int) -> Split:
    """Piece `index` of [kv_head, (its queries, k, v), channel]."""

    def split(x: Tensor, dims: Dims) -> Tensor:
        per_group = dims.num_heads // dims.num_kv_heads
        groups = x.unflatten(-1, (dims.num_kv_heads, per_group + 2, dims.head_dim))
        if index == 0:
            return groups[..., :per_group, :].flatten(-3)
        return groups[..., per_group + index - 1, :].flatten(-2)

    return split


def half(index: int) -> Split:
    """First or second half: [gate | up]."""
    return lambda x, dims: x.chunk(2, dim=-1)[index]


def every_other(index: int) -> Split:
    """Even or odd places: gate0, up0, gate1, up1, ..."""
    return lambda x, dims: x[..., index::2]
