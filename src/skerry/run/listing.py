"""The runs in a folder, as rows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from skerry.errors import BrokenRun, NotARun
from skerry.run.directory import Run, list_runs

STAGES = ("activations", "weights", "findings")


def listing(folder: str | Path) -> list[dict[str, Any]]:
    """One row per run, newest first; a damaged run is a row that says so.

    Raises:
        NotARun: There is no such folder.
    """
    if not Path(folder).is_dir():
        raise NotARun(
            f"there is no folder {folder}; `skerry audit` makes ./skerry-runs, and `skerry runs FOLDER` lists another"
        )
    return [_broken(run) if isinstance(run, BrokenRun) else _row(run) for run in list_runs(folder)]


def _row(run: Run) -> dict[str, Any]:
    record = run.record
    row = {
        "path": str(run.path),
        "model": record.request.get("model"),
        "created": time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created)),
        "state": _state(run),
        "findings": None,
        "seconds": round(sum(stage.seconds for stage in record.stages.values()), 1),
    }
    if run.has("summary.json"):
        try:
            row["findings"] = len(run.summary_document()["findings"])
        except (BrokenRun, json.JSONDecodeError, KeyError) as error:
            row["state"] = f"damaged: {error}"
    return row


def _state(run: Run) -> str:
    if "report" in run.record.stages:
        return "report written"
    if "findings" in run.record.stages or run.has("tame.json") or run.has("births.json"):
        return "finished"
    if run.record.partials:
        kept = run.record.partials
        if blocks := run.partial_stages("block-"):
            return f"stopped after {len(blocks)} blocks; the same command goes on"
        return f"stopped after {next(iter(kept.values())).done} batches; the same command goes on"
    return "begun; the same command goes on"


def _broken(error: BrokenRun) -> dict[str, Any]:
    path = str(error).split("/run.json")[0]
    return {
        "path": path,
        "model": None,
        "created": None,
        "state": f"damaged: {error}",
        "findings": None,
        "seconds": None,
    }
