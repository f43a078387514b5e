"""A finished training as plain values: what `skerry train --json` prints and what its terminal shows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from skerry.redesign.train import Trained
from skerry.redesign.train_folder import FACTS, MODEL, RESULT, read_json

SCHEMA = 1
_POINTS = 60


def train_document(trained: Trained) -> dict[str, Any]:
    """The whole answer.

    Args:
        trained: A finished training.

    Raises:
        BrokenRun: A file of its folder cannot be read.
    """
    folder, losses = trained.folder, trained.losses
    steps = np.unique(np.linspace(1, len(losses), min(_POINTS, len(losses))).round().astype(int))
    width = max(1, len(losses) // _POINTS)
    curve = [
        {"step": int(step), "loss": float(np.nanmean(losses[max(0, step - width) : step]))} for step in steps
    ]
    found = [p.name for p in folder.glob("checkpoint-*") if p.is_dir()]
    return {
        "schema": SCHEMA,
        "folder": str(folder),
        "model": str(folder / MODEL),
        "checkpoints": sorted(found, key=lambda name: int(re.sub(r"\D", "", name) or 0)),
        "recipe": trained.recipe.plain(),
        "facts": read_json(folder / FACTS),
        "result": read_json(folder / RESULT),
        "curve": curve,
    }
