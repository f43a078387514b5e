"""Rows of a study's tables from the results of its arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skerry.causes.bootstrap import bootstrap
from skerry.redesign.study_battery import battery_rows
from skerry.redesign.study_measure import headline
from skerry.redesign.study_quantities import quantities

Row = dict[str, Any]
_LAYER = {
    "resid.out": ("max_to_median", "kurtosis"),
    "attn.probs": ("head", "first_share", "value_drain", "sink_rate"),
    "w.down": ("weight_ratio",),
}


def study_rows(
    results: Sequence[Mapping[str, Any]], *, baseline: str, speed: Sequence[Row]
) -> dict[str, list[Row]]:
    """Every table by name but `study_speed`.

    Args:
        results: Of finished arms.
        baseline: Label that the others are compared with.
        speed: Rows of `study_speed`.
    """
    rows: dict[str, list[Row]] = {
        name: []
        for name in (
            "study_arms",
            "study_curve",
            "study_layers",
            "study_compressed",
            "study_battery",
            "study_quantities",
        )
    }
    for r in results:
        at = {k: r[k] for k in ("label", "size", "seed")}
        rows["study_arms"].append({**at, **_arm(r)})
        rows["study_curve"] += [{**at, **point} for point in r["curve"]]
        rows["study_layers"] += [{**at, **row} for row in _layers(r.get("layers", []))]
        rows["study_battery"] += battery_rows(r)
        rows["study_compressed"] += [{**at, **_compressed(r, c)} for c in r.get("compressed", [])]
    for size in dict.fromkeys(r["size"] for r in results):
        mine = [r for r in results if r["size"] == size]
        found = quantities(mine, baseline=baseline, speed=[s for s in speed if s["size"] == size])
        rows["study_quantities"] += [{"size": size, **row} for row in found]
    return rows


def _arm(r: Mapping[str, Any]) -> Row:
    row: Row = {
        k: r.get(k) for k in ("folder", "key", "parameters", "tokens", "tokens_per_second", "seconds", "note")
    }
    if "loss" in r:
        row |= {"loss": float(np.mean(r["loss"])), **headline(r["layers"])}
    return row


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    found: dict[int, Row] = {}
    for r in rows:
        if r["layer"] is None:
            continue
        mine = found.setdefault(r["layer"], {"layer": r["layer"]})
        mine |= {name: r.get(name) for name in _LAYER.get(r["site"], ())}
        if r["site"] == "mlp.down.in":
            mine |= {"down_in_max": r["abs_max"], "down_in_max_to_median": r["max_to_median"]}
    return [found[layer] for layer in sorted(found)]


def _compressed(r: Mapping[str, Any], c: Mapping[str, Any]) -> Row:
    after = np.asarray(c["loss"])
    change = bootstrap(after - np.asarray(r["loss"]))
    low, high = (x if math.isfinite(x) else None for x in (change.low, change.high))
    return {
        "what": c["what"],
        "loss": float(after.mean()),
        "change": change.value,
        "ci_low": low,
        "ci_high": high,
    }
