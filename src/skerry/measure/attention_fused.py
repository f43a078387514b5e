"""The fused path of AttentionStats.

torch multiplies queries and keys, block by block into memory that is used again, and kernels/attention.c reads each block once.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skerry.anatomy.attention import AttentionView
from skerry.measure.attention_reading import HIDDEN, AttentionReading
from skerry.measure.fused import pointer, scratch, structure
from skerry.measure.kernels import library
from skerry.measure.kernels.build import Library

_Arguments = structure(
    "Attention",
    """*logits stride_sample stride_head stride_query
    num_samples num_heads num_queries num_keys first_query is_causal num_threads mask_kind
    *mask mask_sample mask_head mask_query mask_key *keep keep_stride *sink %softcap %hidden *log_table
    *sums *counts *logit_count *logit_sums *received *exposure out_keys *scratch""",
)
# Logits in hand at once: they stay in the cache between the product and the reading.
_BLOCK = 1 << 20
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_local = threading.local()


@dataclass(frozen=True)
class _Block:
    """Logits [sample, head, query, key] of some inputs and queries: the first of each, and how many keys they reach."""

    logits: Tensor
    first_sample: int
    first_query: int


def read_fused(view: AttentionView, keep: np.ndarray) -> AttentionReading | None:
    """Read one layer; None when the kernels cannot or shall not do it. Arguments as those of `read_plain`."""
    source = view.logits if view.logits is not None else view.query
    if source is None or source.device.type != "cpu" or source.dtype not in _FLOATS:
        return None
    if view.weights is not None or (view.sink_logits is not None and view.sink_logits.dim() != 1):
        return None
    num, length = keep.shape
    kernels = library(num * view.num_heads * length * length)
    if kernels is None:
        return None
    reading = AttentionReading.empty(num, view.num_heads, length)
    call = _Call(view, keep, kernels, reading)
    for block in _given(view.logits) if view.logits is not None else _products(view):
        call.read(block)
    return reading


def _given(logits: Tensor) -> Iterator[_Block]:
    for b in range(len(logits)):
        part = logits[b : b + 1].float()
        yield _Block(part if part.stride(3) == 1 else part.contiguous(), b, 0)


def _products(view: AttentionView) -> Iterator[_Block]:
    """Scaled products of queries and keys; under a causal mask without the keys that no query of the block sees."""
    assert view.query is not None and view.key is not None
    num, heads, length, width = view.query.shape
    groups = view.key.shape[1]
    samples = max(1, _BLOCK // (heads * length * length))
    queries = length if samples > 1 else max(32, min(length, _BLOCK // (heads * length) // 32 * 32))
    query = view.query.float().reshape(num, groups, heads // groups, length, width)
    key = view.key.float().transpose(2, 3)
    room = _room(samples * heads * queries * length)
    for b in range(0, num, samples):
        some = min(samples, num - b)
        for q in range(0, length, queries):
            rows = min(queries, length - q)
            keys = q + rows if view.is_causal else length
            left = query[b : b + some, :, :, q : q + rows].reshape(some * groups, -1, width)
            right = key[b : b + some, :, :, :keys].reshape(some * groups, width, keys)
            out = room[: some * heads * rows * keys].view(some * groups, -1, keys)
            torch.baddbmm(out, left, right, beta=0, alpha=view.scale, out=out)
            yield _Block(out.view(some, heads, rows, keys), b, q)


def _room(size: int) -> Tensor:
    """Memory for a block, one for each Python thread, kept for the next layer."""
    room: Tensor | None = getattr(_local, "room", None)
    if room is None or room.numel() < size:
        with torch.inference_mode(False):
            room = _local.room = torch.empty(size)
    return room


class _Call:
    """The arguments of the kernel; what differs from block to block is set in `read`."""

    def __init__(
        self, view: AttentionView, keep: np.ndarray, kernels: Library, reading: AttentionReading
    ) -> None:
        self.kernels = kernels
        self.reading = reading
        self.keep = None if keep.all() else np.ascontiguousarray(keep).view(np.uint8)
        self.sink = None if view.sink_logits is None else view.sink_logits.detach().float().contiguous()
        self.mask = None if view.mask is None else _four_axes(view.mask)
        self.log_table = _logs(keep.shape[1] + 2)
        strides = (
            [0] * 4
            if self.mask is None
            else [s if n > 1 else 0 for s, n in zip(self.mask.stride(), self.mask.shape, strict=True)]
        )
        self.arguments = _Arguments(
            num_heads=view.num_heads,
            is_causal=view.is_causal,
            mask_kind=0 if self.mask is None else 1 if self.mask.dtype == torch.bool else 2,
            mask_sample=strides[0],
            mask_head=strides[1],
            mask_query=strides[2],
            mask_key=strides[3],
            keep_stride=keep.shape[1],
            sink=0 if self.sink is None else self.sink.data_ptr(),
            softcap=view.softcap if view.softcap and view.logits is None else 0.0,
            hidden=HIDDEN if view.logits is not None else -np.inf,
            log_table=pointer(self.log_table),
            sums=pointer(reading.sums),
            counts=pointer(reading.counts),
            logit_count=pointer(reading.logit_count),
            logit_sums=pointer(reading.logit_sums),
            out_keys=keep.shape[1],
        )

    def read(self, block: _Block) -> None:
        """Read one block into the reading."""
        a, logits, b = self.arguments, block.logits, block.first_sample
        a.logits = logits.data_ptr()
        a.stride_sample, a.stride_head, a.stride_query = logits.stride()[:3]
        a.num_samples, _, a.num_queries, a.num_keys = logits.shape
        a.first_query = block.first_query
        a.num_threads = self.kernels.threads(logits.numel())
        a.mask = (
            0 if self.mask is None else self.mask.data_ptr() + b * a.mask_sample * self.mask.element_size()
        )
        a.keep = 0 if self.keep is None else pointer(self.keep[b:])
        a.received, a.exposure = pointer(self.reading.received[b:]), pointer(self.reading.exposure[b:])
        functions = self.kernels.functions
        functions.skerry_attention_scratch.restype = ctypes.c_int64
        a.scratch = scratch(functions.skerry_attention_scratch(ctypes.byref(a)))
        functions.skerry_attention_read(ctypes.byref(a))


def _four_axes(mask: Tensor) -> Tensor:
    """[sample, head, query, key] with broadcast axes of length 1, bool or float32, dense along its keys."""
    full = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    for axis in range(3):  # an expanded axis is one row read again and again
        if full.shape[axis] > 1 and full.stride(axis) == 0:
            full = full.narrow(axis, 0, 1)
    full = full if full.dtype == torch.bool else full.float()
    return full if full.stride(3) == 1 or full.shape[3] == 1 else full.contiguous()


def _logs(size: int) -> np.ndarray:
    """log(0) as 0, log(1), log(2), ..."""
    table: np.ndarray | None = getattr(_local, "logs", None)
    if table is None or len(table) < size:
        table = _local.logs = np.log(np.maximum(np.arange(2 * size, dtype=np.float64), 1))
    return table
