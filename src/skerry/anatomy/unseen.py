"""Parts of a forward that no observer is shown: what a model computes beside its tokens, through the same modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = [0]


@contextmanager
def unseen() -> Iterator[None]:
    """While open, watches show nothing and changes of activations change nothing."""
    _depth[0] += 1
    try:
        yield
    finally:
        _depth[0] -= 1


def is_unseen() -> bool:
    """Whether such a part is running."""
    return _depth[0] > 0
