"""The optimisers that come from pytorch-optimizer (extra `train`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from skerry.errors import MissingExtra


def from_library(name: str) -> Any:
    """A class of pytorch-optimizer, by its name there.

    Raises:
        MissingExtra: The library is not installed.
    """
    try:
        return getattr(import_module("pytorch_optimizer"), name)
    except ImportError as absent:
        raise MissingExtra(
            f"the optimiser {name} comes from pytorch-optimizer, which is not installed; `pip install 'skerry[train]'`"
        ) from absent
