"""Too little memory: how it is told from other errors, and the same inputs in smaller batches."""

from __future__ import annotations

from collections.abc import Sequence

from skerry.corpus.batch import Batch

_SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full: CUDA, MPS and the CPU allocator have different classes for it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)
    )


def smaller(batches: Sequence[Batch]) -> list[Batch]:
    """The same inputs with half as many in a batch."""
    return sized(batches, max(1, max(len(b.input_ids) for b in batches) // 2))


def sized(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The same inputs with at most `size` in a batch."""
    return [
        Batch(b.input_ids[i : i + size], b.keep[i : i + size], b.sample[i : i + size])
        for b in batches
        for i in range(0, len(b.input_ids), size)
    ]


def split(batches: Sequence[Batch], count: int) -> tuple[list[Batch], list[Batch]]:
    """The first `count` inputs, and the rest."""
    first: list[Batch] = []
    rest: list[Batch] = []
    left = count
    for b in batches:
        size = len(b.input_ids)
        if left > 0:
            first.append(Batch(b.input_ids[:left], b.keep[:left], b.sample[:left]))
        if size > left:
            begin = max(0, left)
            rest.append(Batch(b.input_ids[begin:], b.keep[begin:], b.sample[begin:]))
        left -= size
    return first, rest
