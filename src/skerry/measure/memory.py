"""Keeps the heap from growing around what a scan keeps.

A forward allocates and frees large tensors; small arrays that stay, allocated in between, would pin the heap at its largest (measured: 780 MB
beyond a plain forward of a 12-layer, 768-wide model, of which 36 MB are statistics). So the accumulators are made before the first
batch, and what the allocator holds free is given back after each one.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another C library than glibc
        return None


def give_back() -> None:
    """Return free memory to the system, where the C library can; costs about 10 ms per batch."""
    if (trim := _trim()) is not None:
        trim(0)
