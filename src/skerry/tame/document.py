"""The answer of `skerry tame` as one JSON document; terminal, report and Python show this and compute nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skerry.outliers.plan import Plan
    from skerry.run import Run
    from skerry.tame.choose import Choice
    from skerry.tame.export import Exported
    from skerry.tame.method import Row
    from skerry.tame.pipeline import Tamed
    from skerry.tame.wanted import TameOptions

SCHEMA = 1


def tame_document(
    plan: Plan, run: Run, wanted: TameOptions, choice: Choice, exported: Exported | None
) -> dict[str, Any]:
    """What was done, tried, proved, left out and written."""
    from skerry.outliers.scan import model_card

    tamed = choice.tamed
    return {
        "schema": SCHEMA,
        "run": str(run.path),
        "model": model_card(plan).model_dump(),
        "scheme": str(wanted.scheme),
        "asked": wanted.method,
        "chosen": tamed.name,
        "why": choice.why,
        "reached": choice.reached if wanted.method == "auto" else None,
        "methods": choice.rows,
        "equivalence": equivalence_rows(tamed),
        "seams": [dict(row) for row in tamed.found.rows.get("seam_changes", [])],
        "parts": [dict(row) for row in tamed.found.rows.get("parts", [])],
        "needs": tamed.needs,
        "notes": [*plan.loaded.warnings, *plan.feed.card.notes, *tamed.found.notes],
        "corpus": plan.feed.card.as_dict(),
        "calibration_inputs": wanted.calibration,
        "held_out_inputs": wanted.samples if wanted.evaluate else 0,
        "seconds": tamed.seconds,
        "export": None if exported is None else _export(exported),
    }


def equivalence_rows(tamed: Tamed) -> list[Row]:
    """The proof before folding and the comparison after it, one row each."""
    from skerry.tame.transform import FLOAT64_BOUND

    rows: list[Row] = []
    for method, e in tamed.equivalence.items():
        if e.float64 is not None:
            rows.append(
                {
                    "method": method,
                    "check": "float64",
                    "error": e.float64,
                    "bound": FLOAT64_BOUND,
                    "dtype": "float64",
                    "num_tokens": e.num_tokens,
                }
            )
        rows.append(
            {
                "method": method,
                "check": "stored",
                "error": e.stored,
                "bound": e.bound,
                "dtype": e.dtype,
                "num_tokens": e.num_tokens,
            }
        )
    return rows


def _export(exported: Exported) -> dict[str, Any]:
    read = exported.readback
    return {
        "path": str(exported.path),
        "form": exported.form,
        "files": dict(exported.files),
        "readback_error": read.max_relative_error,
        "readback_bound": read.bound,
        "loaded_as": read.loaded_as,
        "num_positions": read.num_positions,
        "versions": dict(read.versions),
        "config_changes": {
            k: v if isinstance(v, (str, int, float, bool)) else str(v)
            for k, v in exported.config_changes.items()
        },
        "notes": list(exported.notes),
    }
