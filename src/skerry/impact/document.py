"""What things cost as one document, put together from the tables of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from skerry.run import Run

SCHEMA = 1
GRID_STAGE, SITES_STAGE, CLIPPING_STAGE, PRUNING_STAGE = (
    "impact_grid",
    "impact_sites",
    "impact_clipping",
    "impact_pruning",
)
STAGES = (GRID_STAGE, SITES_STAGE, CLIPPING_STAGE, PRUNING_STAGE)


def impact_document(run: Run, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """What `skerry impact --json` prints: every table of the stages, with their notes and times.

    Args:
        run: The run.
        stages: Stages to tell of; those that the run does not hold are absent. Numbers that have no value are null.
    """
    here = [name for name in stages if name in run.record.stages]
    tables = [name for name in run.table_names if any(name in run.record.stages[s].files for s in here)]
    return {
        "schema": SCHEMA,
        "run": str(run.path),
        "model": run.summary_document()["model"],
        **{name: _rows(run, name) for name in tables},
        "notes": impact_notes(run, here),
        "seconds": {name: round(run.record.stages[name].seconds, 3) for name in here},
    }


def impact_notes(run: Run, stages: Sequence[str] = STAGES) -> list[str]:
    """What the stages had to say beside their numbers, each once."""
    notes = [
        note
        for name in stages
        if run.has(f"{name}.json")
        for note in json.loads(run.text(f"{name}.json"))["notes"]
    ]
    return list(dict.fromkeys(notes))


def _rows(run: Run, name: str) -> list[dict[str, Any]]:
    return [{k: _finite(v) for k, v in row.items()} for row in run.table(name).to_pylist()]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
