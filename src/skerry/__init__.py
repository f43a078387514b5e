"""skerry: finds, explains, prices, tames and prevents systematic outliers in large language models.

>>> import skerry
>>> scan = skerry.scan("path/or/hub-id")        # doctest: +SKIP
>>> scan.findings[0]                            # doctest: +SKIP
>>> skerry.audit("path/or/hub-id").report       # doctest: +SKIP
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from skerry.redesign.registering import watch_for_transformers

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "Claims",
    "Impact",
    "Scan",
    "Trace",
    "Watch",
    "__version__",
    "ablate_channel",
    "ablate_head",
    "ablate_sink",
    "ablate_weight",
    "audit",
    "births",
    "claims",
    "clip",
    "impact",
    "open_run",
    "optimize",
    "replace",
    "resample",
    "retrofit",
    "scale",
    "scan",
    "set_mean",
    "tame",
    "trace",
    "train",
    "zero",
]
_INTERVENTIONS = ("clip", "replace", "resample", "scale", "set_mean", "zero")
_ABLATIONS = ("ablate_channel", "ablate_head", "ablate_sink", "ablate_weight")
_TRAINING = ("births", "train")

if TYPE_CHECKING:
    from skerry.answers import Audit, Claims, Impact, Scan, Trace, Watch
    from skerry.api import audit, claims, impact, open_run, scan, tame, trace
    from skerry.api_optimize import optimize
    from skerry.api_retrofit import retrofit
    from skerry.api_training import births, train
    from skerry.causes.ablations import ablate_channel, ablate_head, ablate_sink, ablate_weight
    from skerry.causes.interventions import clip, replace, resample, scale, set_mean, zero


def __getattr__(name: str) -> Any:
    """Import the heavy rooms when their names are first used, and not before."""
    import importlib

    if name in __all__:
        room = (
            "causes.interventions"
            if name in _INTERVENTIONS
            else "causes.ablations"
            if name in _ABLATIONS
            else "api_training"
            if name in _TRAINING
            else "api_retrofit"
            if name == "retrofit"
            else "api_optimize"
            if name == "optimize"
            else "api"
        )
        return getattr(importlib.import_module(f"skerry.{room}"), name)
    raise AttributeError(f"module 'skerry' has no attribute {name!r}")


class _Door(ModuleType):
    """Keeps `skerry.claims` the verb, although the import system would put the room of the same name there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door

watch_for_transformers()
