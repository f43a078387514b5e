"""What is a model made of? Canonical sites, families, loading."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skerry.anatomy.attention import AttentionView
    from skerry.anatomy.load import Loaded, default_model, encoder_model, load
    from skerry.anatomy.model import Anatomy, run
    from skerry.anatomy.resolve import resolve
    from skerry.anatomy.sites import ACTIVATION_PARTS, WEIGHT_PARTS, Site, parse_parts
    from skerry.anatomy.watch import capture, watch

# The vocabulary is wanted by readers of runs, who need no torch; so each name is imported when it is first used.
_DOOR = {
    "ACTIVATION_PARTS": "sites",
    "WEIGHT_PARTS": "sites",
    "Anatomy": "model",
    "AttentionView": "attention",
    "Loaded": "load",
    "Site": "sites",
    "capture": "watch",
    "default_model": "load",
    "encoder_model": "load",
    "load": "load",
    "parse_parts": "sites",
    "resolve": "resolve",
    "run": "model",
    "watch": "watch",
}
__all__ = [
    "ACTIVATION_PARTS",
    "WEIGHT_PARTS",
    "Anatomy",
    "AttentionView",
    "Loaded",
    "Site",
    "capture",
    "default_model",
    "encoder_model",
    "load",
    "parse_parts",
    "resolve",
    "run",
    "watch",
]


class _Door(ModuleType):
    """Keeps `load`, `resolve` and `watch` the functions, although the import system would put their modules of the same name there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _DOOR and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    """Import a name of the door from its module."""
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DOOR[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


sys.modules[__name__].__class__ = _Door
