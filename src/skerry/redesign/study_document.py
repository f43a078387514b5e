"""The one document that terminal, report and `--json` of a study are faces of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skerry.redesign.study_plan import Plan
from skerry.redesign.study_quantities import PER_SEED

SCHEMA = 1
Row = dict[str, Any]


def study_document(
    plan: Plan, rows: Mapping[str, Sequence[Row]], results: Sequence[Mapping[str, Any]], *, run: Path
) -> dict[str, Any]:
    """Plain values.

    Args:
        plan: The study.
        rows: Of its tables.
        results: Of its arms.
        run: Its folder.
    """
    shapes = ("layers", "width", "heads", "vocabulary", "context", "steps", "batch", "accumulation")
    first = {size: next(a.recipe for a in plan.arms if a.size == size) for size in plan.sizes}
    return {
        "schema": SCHEMA,
        "study": plan.study,
        "preset": plan.preset,
        "run": str(run),
        "baseline": plan.baseline,
        "labels": list(plan.labels),
        "sizes": {size: {name: getattr(r, name) for name in shapes} for size, r in first.items()},
        "seeds": list(plan.seeds),
        "measured": plan.measured.plain(),
        "words": {name: q.what for name, q in PER_SEED.items()},
        "quantities": list(rows["study_quantities"]),
        "arms": list(rows["study_arms"]),
        "curve": list(rows["study_curve"]),
        "layers": list(rows["study_layers"]),
        "batteries": [
            {"label": r["label"], "size": r["size"], "seed": r["seed"], "battery": r["battery"]}
            for r in results
            if "battery" in r
        ],
        "notes": notes(plan, results),
    }


def notes(plan: Plan, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    if len(plan.seeds) == 1:
        found.append(
            "one seed: intervals are over held-out windows and say how sure it is that this decoder is better, not that its variant is; --seeds 3"
        )
    else:
        found.append(
            f"{len(plan.seeds)} seeds: losses are drawn again over seeds and windows, numbers per seed have Student's interval"
        )
    found += [
        f"{r['size']} {r['label']} seed {r['seed']}: {r['note']}; it has no numbers"
        for r in results
        if r.get("note")
    ]
    if not any(r["label"] == plan.baseline and "loss" in r for r in results):
        found.append(f"the baseline {plan.baseline} has no finished training: nothing can be compared")
    return found
