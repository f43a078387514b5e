"""skerry: finds, explains, prices, tames and prevents systematic outliers in large language models.

>>> import skerry
>>> scan = skerry.scan("path/or/hub-id")        # doctest: +SKIP
>>> scan.findings[0]                            # doctest: +SKIP
>>> skerry.audit("path/or/hub-id").report()     # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Audit", "Scan", "__version__", "audit", "open_run", "scan"]

if TYPE_CHECKING:
    from skerry.outliers.scan import Scan, open_run, scan
    from skerry.report.audit import Audit, audit


def __getattr__(name: str) -> Any:
    """Import the heavy rooms when their names are first used, and not before."""
    if name in ("scan", "Scan", "open_run"):
        from skerry.outliers import scan as module
    elif name in ("audit", "Audit"):
        from skerry.report import audit as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module 'skerry' has no attribute {name!r}")
    return getattr(module, name)
