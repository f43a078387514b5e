"""A watched series as one document: what grew, when each kind was born, which channels stayed; every face reads this and the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from skerry.redesign.births_onset import KINDS, Curve, curve, kind_curve
from skerry.redesign.births_rows import Row
from skerry.run import Run

SCHEMA = 1
STAGE = "births"
# Site and column of every curve that is drawn; the largest over layers.
MEASURES = (
    ("resid.out", "max_to_median"),
    ("resid.out", "abs_max"),
    ("resid.out", "kurtosis"),
    ("resid.out", "kurtosis_channels"),
    ("resid.out", "kurtosis_oft"),
    ("resid.out", "kurtosis_osp"),
    ("mlp.down.in", "max_to_median"),
    ("mlp.down.in", "abs_max"),
    ("attn.probs", "first_share"),
    ("attn.probs", "sink_rate"),
    ("attn.probs", "logit_max"),
    ("w.down", "weight_ratio"),
)
DRAIN, LEAST_DRAIN = ("attn.probs", "value_drain"), ("attn.probs", "least_drain")
_CHANNEL_SITES = ("resid.out",)
_MOST_CHANNELS = 12


def series_document(name: str, rows: Sequence[Row], tables: Mapping[str, list[Row]]) -> dict[str, Any]:
    """One training of the document.

    Args:
        name: Of the training.
        rows: All its rows.
        tables: `birth_onsets` and `birth_channels` as rows, of all trainings.
    """
    mine = {
        key: [{k: v for k, v in r.items() if k != "series"} for r in found if r["series"] == name]
        for key, found in tables.items()
    }
    curves = [_curve(site, measure, curve(rows, site, measure)) for site, measure in MEASURES]
    curves += [_curve(*DRAIN, drain(rows)), _curve(*LEAST_DRAIN, least(rows, LEAST_DRAIN[1]))]
    return {
        "name": name,
        "steps": sorted({row["step"] for row in rows}),
        "levels": {
            kind: _curve(KINDS[kind].site, KINDS[kind].measure, kind_curve(rows, kind)) for kind in KINDS
        },
        "onsets": mine["birth_onsets"],
        "channels": _channels(mine["birth_channels"]),
        "curves": [c for c in curves if c["steps"]],
    }


def drain(rows: Sequence[Row]) -> Curve:
    """Value drain of the strongest head of all layers at each step: of the head that gives most to the first token."""
    strongest: dict[int, Row] = {}
    for row in rows:
        if row["kind"] == "attention" and row["first_share"] is not None and row["value_drain"] is not None:
            before = strongest.get(row["step"])
            if before is None or row["first_share"] > before["first_share"]:
                strongest[row["step"]] = row
    steps = tuple(sorted(strongest))
    return Curve(steps, tuple(float(strongest[s]["value_drain"]) for s in steps))


def least(rows: Sequence[Row], measure: str) -> Curve:
    """The smallest value of a column over layers, step by step."""
    found = curve(
        [{**r, measure: -r[measure]} for r in rows if r.get(measure) is not None], LEAST_DRAIN[0], measure
    )
    return found._replace(levels=tuple(-x for x in found.levels))


def _curve(site: str, measure: str, found: Curve) -> dict[str, Any]:
    return {
        "site": site,
        "measure": measure,
        "steps": list(found.steps),
        "levels": [x if math.isfinite(x) else None for x in found.levels],
    }


def _channels(rows: list[Row]) -> list[Row]:
    """The channels of the residual stream that are the strongest in most layers at the end, each once."""
    found: dict[int, Row] = {}
    for row in rows:
        if row["site"] in _CHANNEL_SITES:
            known = found.setdefault(
                row["channel"],
                {"channel": row["channel"], "layers": [], "since": row["since"], "share": 0.0, "size": 0.0},
            )
            known["layers"].append(row["layer"])
            known["since"] = min(known["since"], row["since"])
            known["share"] = max(known["share"], row["share"])
            known["size"] = max(known["size"], row["size"] or 0.0)
    strongest = sorted(found.values(), key=lambda c: -c["size"])
    return strongest[:_MOST_CHANNELS]


def births_document(run: Run) -> dict[str, Any]:
    """What `skerry watch --json` prints.

    Raises:
        BrokenRun: The run holds no watched series.
    """
    return {**json.loads(run.text("births.json")), "run": str(run.path)}
