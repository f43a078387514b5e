"""One declarative file per architecture; found by its presence in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from skerry.anatomy.family import Family


@cache
def all_families() -> tuple[Family, ...]:
    """Every declared family, by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return tuple(importlib.import_module(f"{__name__}.{name}").FAMILY for name in names)


def family_of(model_type: str) -> Family | None:
    """The family that covers a `config.model_type`; None for an unknown architecture."""
    return next((f for f in all_families() if model_type in f.model_types), None)
