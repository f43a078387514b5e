"""One attention variant per file; found by its presence in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from skerry.errors import UnknownOption, near_matches
from skerry.redesign.variant import Variant


@cache
def variants() -> dict[str, type[Variant]]:
    """Every attention variant by its name, e.g. `softmax`, `scaled`, `sink-logit`."""
    found: dict[str, type[Variant]] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
        listed = importlib.import_module(f"{__name__}.{module}").VARIANTS
        found.update({variant.name: variant for variant in listed})
    return found


def variant(name: str) -> type[Variant]:
    """The variant of that name.

    Raises:
        UnknownOption: There is none.
    """
    known = variants()
    if name not in known:
        near = near_matches(name, list(known))
        raise UnknownOption(
            f"there is no attention variant {name!r}{f'; did you mean {near}?' if near else ''} known: {', '.join(known)}"
        )
    return known[name]
