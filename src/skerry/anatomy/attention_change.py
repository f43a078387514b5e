"""Gives attention other queries, keys, values or probabilities while a model runs.

Only architectures built on transformers' attention interface can be changed so; `can_change_attention` says whether one is. What an edit
of the tensors returns is what the cache would have to hold: it comes after rotation, before grouped keys are expanded. An edit of the
probabilities makes attention be computed step by step, which differs from the fused kernel by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from skerry.anatomy.attention import AttentionEdit, _edits, listed, taken_over, uses_interface
from skerry.errors import UnknownOption


def can_change_attention(model: nn.Module) -> bool:
    """Whether the attention of this model can be changed."""
    return uses_interface(model)


@contextmanager
def change_attention(
    model: nn.Module, places: Mapping[int, nn.Module], edit: AttentionEdit
) -> Iterator[None]:
    """Change every attention of the blocks in `places` (layer to attention module) while open.

    Raises:
        UnknownOption: The architecture computes its attention in code of its own.
    """
    if not can_change_attention(model):
        raise UnknownOption(
            f"the attention of {type(model).__name__} cannot be changed: its code does not use transformers' attention interface"
        )
    with taken_over(model), listed(_edits, places, edit):
        yield


__all__ = ["AttentionEdit", "can_change_attention", "change_attention"]
