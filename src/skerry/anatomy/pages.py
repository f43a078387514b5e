"""Memory of weights that lie in a file: what was read of them is given back to the system when a block has run.

A checkpoint is mapped into memory, not copied. Whatever is read of it stays resident, so a pass over a model ends with all of it in memory, though
one block at a time would do. `let_go` gives back those pages that the system has in the file anyway: it asks the page table which pages are the
file's (a page that was written, by a fold, is the process's own) and gives back no other. The next read finds them in the file again, mostly in
the system's cache: a fraction of a millisecond per megabyte.

Only on Linux; elsewhere, and of weights that lie in no file, nothing is given back. Limit: values never change.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PAGEMAP = "/proc/self/pagemap"
# Bits of a page table's entry: the page is of a file (or shared), and is in memory. Linux, Documentation/admin-guide/mm/pagemap.rst.
_OF_FILE, _PRESENT = np.uint64(1 << 61), np.uint64(1 << 63)
_DONTNEED = 4
# Smaller tensors are not worth a call.
_SMALLEST = 1 << 16


def let_go(tensors: Iterable[Tensor]) -> int:
    """Give back the pages of these tensors that lie in a file and were not written; their values stay.

    Returns:
        Bytes given back.
    """
    system = _system()
    if system is None:
        return 0
    given = 0
    with open(_PAGEMAP, "rb", buffering=0) as table:  # noqa: PTH123
        for tensor in tensors:
            if tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() >= _SMALLEST:
                given += _let_go_one(system, table.fileno(), tensor)
    return given


def _let_go_one(system: Any, table: int, tensor: Tensor) -> int:
    storage = tensor.untyped_storage()
    size = mmap.PAGESIZE
    first, stop = -(-storage.data_ptr() // size), (storage.data_ptr() + storage.nbytes()) // size
    if stop <= first:
        return 0
    found = os.pread(table, (stop - first) * 8, first * 8)
    entries = np.frombuffer(found[: len(found) // 8 * 8], dtype=np.uint64)
    wanted = _OF_FILE | _PRESENT
    ours = np.concatenate([[False], (entries & wanted) == wanted, [False]])
    ends = np.flatnonzero(ours[1:] != ours[:-1])
    given = 0
    for begin, end in ends.reshape(-1, 2):
        length = int(end - begin) * size
        if system.madvise((first + int(begin)) * size, length, _DONTNEED) == 0:
            given += length
    return given


@contextmanager
def letting_go(model: nn.Module) -> Iterator[None]:
    """While open, every block of a model gives its pages back when it has run, and so does every module outside the blocks."""
    if _system() is None:
        yield
        return
    with ExitStack() as stack:
        for part in _parts(model):
            stack.callback(part.register_forward_hook(_after).remove)
        yield


def _parts(model: nn.Module) -> list[nn.Module]:
    """The members of the model's lists of blocks, and the modules outside them that hold weights of their own."""
    blocks = [m for part in model.modules() if isinstance(part, nn.ModuleList) for m in part]
    inside = {id(m) for block in blocks for m in block.modules()}
    outside = [m for m in model.modules() if id(m) not in inside and m._parameters]
    return [*blocks, *outside]


def _after(part: nn.Module, _args: Any, _out: Any) -> None:
    let_go(p.detach() for p in part.parameters())


def give_back() -> None:
    """Ask the allocator to return what is free: it keeps tens of megabytes of a block that was in float64."""
    system = _system()
    if system is not None and hasattr(system, "malloc_trim"):
        system.malloc_trim(0)


@cache
def _system() -> Any:
    """The C library, where pages can be asked for; None elsewhere."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        with open(_PAGEMAP, "rb", buffering=0) as table:  # noqa: PTH123
            address = torch.zeros(1).data_ptr() // mmap.PAGESIZE * 8
            if len(os.pread(table.fileno(), 8, address)) != 8:
                return None
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    except (OSError, AttributeError, TypeError):
        return None
    return library


__all__ = ["give_back", "let_go", "letting_go"]
