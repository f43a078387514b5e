"""skerry: finds, explains, prices, tames and prevents systematic outliers in large language models.

>>> import skerry
>>> scan = skerry.scan("path/or/hub-id")        # doctest: +SKIP
>>> scan.findings[0]                            # doctest: +SKIP
>>> skerry.audit("path/or/hub-id").report       # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Audit", "Scan", "__version__", "audit", "open_run", "scan"]

if TYPE_CHECKING:
    from skerry.api import Audit, Scan, audit, open_run, scan


def __getattr__(name: str) -> Any:
    """Import the heavy rooms when their names are first used, and not before."""
    if name in __all__:
        from skerry import api

        return getattr(api, name)
    raise AttributeError(f"module 'skerry' has no attribute {name!r}")
