"""A key of what a model computes with: two models with the same key have, for all practical purposes, the same weights.

Every byte counts, at the speed of memory: each tensor is read once as 64-bit integers and folded into sums of 512 interleaved
columns, block by block of 64 Ki integers; names, types, shapes and sums go through SHA-256.  A changed weight changes its
column's sum, a moved one changes two.  It detects edits, mix-ups and damage; it does not withstand somebody who forges sums.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

_COLUMNS = 512
_BLOCK = 128  # rows folded into one sum: what moves further than 64 Ki integers changes two sums


def content_key(model: nn.Module) -> str:
    """Key of parameters, buffers and configuration: 32 hexadecimal digits.

    Depends on values, types, shapes and names; not on the device, nor on which file they came from.
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        digest.update(repr(_stable(config.to_dict())).encode())
    digest.update(type(model).__name__.encode())
    for kind in (model.named_parameters(), model.named_buffers()):
        for name, tensor in kind:
            digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            if not tensor.is_meta:
                digest.update(fold(tensor.detach()).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def fold(tensor: Tensor) -> Int64[Tensor, "block column"]:
    """The tensor's bytes as 64-bit integers, summed by interleaved columns within each block; sums wrap around.

    The last integers that do not fill a row are kept as they are, behind the sums.
    """
    if not tensor.numel():
        return torch.zeros(0, _COLUMNS, dtype=torch.int64)
    if tensor.device.type == "mps":  # no views across types there
        tensor = tensor.cpu()
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    if raw.numel() % 8 or raw.data_ptr() % 8:
        raw = torch.cat([raw, raw.new_zeros(-raw.numel() % 8)])
    words = raw.view(torch.int64)
    rows = words.numel() // _COLUMNS
    tail = words.new_zeros(1, _COLUMNS)
    tail[0, : words.numel() - rows * _COLUMNS] = words[rows * _COLUMNS :]
    body = words[: rows * _COLUMNS].view(rows, _COLUMNS)
    sums = [body[start : start + _BLOCK].sum(0, keepdim=True) for start in range(0, rows, _BLOCK)]
    return torch.cat([*sums, tail])


# How a model is run, what class read it and where it came from change no number.
_NOT_CONTENT = frozenset(
    [
        "_name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "architectures",
        "auto_map",
        "use_cache",
    ]
)


def _stable(value: Any) -> Any:
    """A configuration in a fixed order, without what does not decide a number and without what is not set."""
    if not isinstance(value, dict):
        return value
    kept = {
        k: v
        for k, v in value.items()
        if k not in _NOT_CONTENT and "attn_implementation" not in str(k) and v is not None
    }
    return [(k, _stable(kept[k])) for k in sorted(kept, key=str)]
