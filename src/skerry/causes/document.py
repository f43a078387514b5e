"""A trace as one document, put together from the tables of its run."""

from __future__ import annotations

import json
import math
from typing import Any

from skerry.run import Run
from skerry.run.cause_tables import CAUSE_TABLES

SCHEMA = 1
_OF_CARRIERS = ("carrier_tokens", "lifecycle", "growth", "factors", "growth_weights", "units")
_STAGES = ("lifecycle", "effects", "roles")


def trace_document(run: Run) -> dict[str, Any]:
    """What `skerry trace --json` prints: carriers with all that belongs to each, then the tables of the whole model.

    Tables of stages that were not asked for are absent; numbers that have no value are null.
    """
    tables = {name: _rows(run, name) for name in CAUSE_TABLES if run.has(name)}
    carriers = [
        {**carrier, **{name: _of(tables.get(name, []), carrier["carrier"]) for name in _OF_CARRIERS}}
        for carrier in tables.get("carriers", [])
    ]
    whole = {name: rows for name, rows in tables.items() if name not in (*_OF_CARRIERS, "carriers")}
    stages = [name for name in _STAGES if name in run.record.stages]
    return {
        "schema": SCHEMA,
        "run": str(run.path),
        "model": run.summary_document()["model"],
        "carriers": carriers,
        **whole,
        "notes": trace_notes(run),
        "seconds": {name: round(run.record.stages[name].seconds, 3) for name in stages},
    }


def trace_notes(run: Run) -> list[str]:
    """What the stages of a trace had to say beside their numbers, each once."""
    notes = [
        note
        for name in _STAGES
        if run.has(f"{name}.json")
        for note in json.loads(run.text(f"{name}.json"))["notes"]
    ]
    return list(dict.fromkeys(notes))


def _rows(run: Run, name: str) -> list[dict[str, Any]]:
    return [{k: _finite(v) for k, v in row.items()} for row in run.table(name).to_pylist()]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of(rows: list[dict[str, Any]], carrier: int) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "carrier"} for row in rows if row["carrier"] == carrier]
