"""What the fused kernels share: their arguments as C structures, and memory to work in."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerry.measure.sketch import NUM_BUCKETS

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types that the kernels read; numbers as in kernels/common.h."""
MAX_LIST = 256
"""Longest list of largest values that the kernels keep."""
_local = threading.local()


def scratch(size: int) -> int:
    """Address of memory of at least `size` bytes, one for each Python thread, kept for the next call.

    Fresh memory costs a page fault every 4 kB, which would cost more than the reading.
    """
    room = getattr(_local, "room", None)
    if room is None or room.nbytes < size:
        room = _local.room = np.empty(size + size // 4, np.uint8)
    return pointer(room)


def tables(size: int) -> int:
    """Address of `size` bytes that are zero; the kernels leave them so. One block for each Python thread, kept for the next call."""
    room = getattr(_local, "tables", None)
    if room is None or room.nbytes < size:
        room = _local.tables = np.zeros(size, np.uint8)
    return pointer(room)


def histogram_room() -> np.ndarray:
    """int64 [bucket], overwritten by every call of a kernel on this Python thread."""
    room = getattr(_local, "histogram", None)
    if room is None:
        room = _local.histogram = np.zeros(NUM_BUCKETS, np.int64)
    return room


def pointer(array: np.ndarray) -> int:
    """Address of an array's memory."""
    return int(array.__array_interface__["data"][0])


def structure(name: str, fields: str) -> type[ctypes.Structure]:
    """A C structure of 64-bit members.

    Args:
        name: Its name.
        fields: Member names; one that begins with * is a pointer, one with % a double, others are int64.
    """
    types: dict[str, Any] = {"*": ctypes.c_void_p, "%": ctypes.c_double}
    members = [(f.lstrip("*%"), types.get(f[0], ctypes.c_int64)) for f in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": members})


def is_readable(x: Tensor) -> bool:
    """Whether the kernels can read this matrix in place: on the host, of a known type, dense along its rows."""
    return x.device.type == "cpu" and x.dtype in DTYPES and (x.stride(1) == 1 or x.shape[1] == 1)
