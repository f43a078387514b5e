"""Makes the Auto classes of transformers know skerry's decoder, without loading either before it is asked for.

`watch_for_transformers()` runs when skerry is imported. When transformers' table of configurations is there already, the configuration is
registered at once, which costs a few milliseconds; else when that table is imported. The models are registered when the first configuration of
a decoder is built, which every loading does before it looks for a model: at import of the table the classes they derive from may be half-built.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_TABLE = "transformers.models.auto.configuration_auto"


def watch_for_transformers() -> None:
    """Register the configuration now if transformers' table is loaded, else as soon as it is."""
    if _TABLE in sys.modules:
        register_config()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds one module, as everybody else would, and has something done behind its execution."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """None for every other module; the path of a package need not be a sequence."""
        if fullname != _TABLE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                register_config()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        sys.meta_path.remove(self)
        return spec


def register_config() -> None:
    """Teach AutoConfig the decoder's configuration."""
    from skerry.redesign.config import MODEL_TYPE, DecoderConfig

    table: Any = sys.modules[_TABLE]
    table.AutoConfig.register(MODEL_TYPE, DecoderConfig, exist_ok=True)


def register_models() -> None:
    """Teach AutoModel and AutoModelForCausalLM the decoder; nothing when they know it."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    from skerry.redesign.config import DecoderConfig

    if DecoderConfig not in auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        from skerry.redesign.decoder import Decoder, DecoderForCausalLM

        auto.AutoModel.register(DecoderConfig, Decoder, exist_ok=True)
        auto.AutoModelForCausalLM.register(DecoderConfig, DecoderForCausalLM, exist_ok=True)
