"""One attention variant per file; found by its presence in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from skerry.redesign.choosing import check_choice
from skerry.redesign.variant import Variant


@cache
def variants() -> dict[str, type[Variant]]:
    """Every attention variant by its name, e.g. `softmax`, `scaled`, `sink-logit`."""
    found: dict[str, type[Variant]] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
        listed = importlib.import_module(f"{__name__}.{module}").VARIANTS
        found.update({variant.name: variant for variant in listed})
    return found


def check_variant(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown variant or option.

    Raises:
        UnknownOption: With the near matches.
    """
    check_choice("attention variant", name, variants(), options, fixed=("config", "layer"))


def variant(name: str) -> type[Variant]:
    """The variant of that name.

    Raises:
        UnknownOption: There is none.
    """
    check_variant(name, {})
    return variants()[name]
