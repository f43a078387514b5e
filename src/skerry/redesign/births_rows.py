"""From accumulators to rows: one per site, one per layer's attention, one per down projection; columns of the table `births`.

    activation   abs_max / median of |x|, four kurtoses, channels by mean_s max_t |x_stj| / median over channels
    attention    alpha_1 = mean_s received / exposure of the first token, the strongest head; drain = |v_1| / mean_{k>1} |v_k| in it
    weight       r_j = max_i |w_ij| / (mean_i |w_ij| + 1e-8), rows likewise (An et al. 2502.06415)

Numbers without a value (a median of 0, no attention shown) are None, so rows survive JSON. Limit: at one query per key nothing is a
sink; uniform causal attention over T tokens has alpha_1 = (1/T) sum_i 1/i, 0.04 at T = 128.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skerry.anatomy import Site
from skerry.measure import ActivationStats, AttentionStats, WeightResult
from skerry.measure.attention import SINK_QUERIES, SINK_SHARE
from skerry.redesign.births_reading import BirthsReading

Row = dict[str, Any]
TOP = 8
"""How many of the strongest channels a row names."""
_ACTIVATION = ("abs_max", "median", "kurtosis", "kurtosis_channels", "kurtosis_oft", "kurtosis_osp")


def rows_of(reading: BirthsReading, step: int, *, top: int = TOP) -> list[Row]:
    """All rows of one step.

    Args:
        reading: What was read.
        step: Optimizer steps done.
        top: How many of the strongest channels a row names.
    """
    rows = [_activation(site, stats, top) for site, stats in reading.sites()]
    rows += [_attention(layer, stats, top) for layer, stats in sorted(reading.attentions.items())]
    rows += [_weight(site, result, top) for site, result in reading.weights()]
    return [{"step": step, **row} for row in rows]


def _activation(site: Site, stats: ActivationStats, top: int) -> Row:
    result = stats.result()
    size = np.nan_to_num(result.channels["abs_max_mean"])
    middle = float(np.median(size))
    largest = _largest(size, top)
    return {
        **_place("activation", site),
        "num_tokens": int(result.site["num_tokens"]),
        **{name: _number(result.site[name]) for name in _ACTIVATION},
        "max_to_median": _ratio(result.site["abs_max"], result.site["median"]),
        "top_index": largest.tolist(),
        "top_size": [_ratio(size[i], middle) for i in largest],
        "num_nonfinite": int(result.site["num_nan"] + result.site["num_inf"]),
    }


def _attention(layer: int, stats: AttentionStats, top: int) -> Row:
    heads, keys, _ = stats.result()
    num_heads = len(heads["head"])
    position, alpha, sink, norm, exposure, inputs = (
        keys[name].reshape(num_heads, -1)
        for name in ("position", "alpha", "sink", "value_norm", "exposure", "num_samples")
    )
    first = alpha[:, 0]
    head = int(np.nanargmax(first)) if np.isfinite(first).any() else 0
    seen = np.where(exposure >= SINK_QUERIES * inputs, np.nan_to_num(alpha), -1.0)
    sink_head, key = np.unravel_index(int(seen.argmax()), seen.shape)
    largest = _largest(np.nan_to_num(first), top)
    rest = norm[head, 1:]
    logits = np.stack([heads["logit_min"], heads["logit_max"]])
    return {
        **_place("attention", Site(layer, "attn.probs")),
        "num_tokens": int(inputs[0].sum()),
        "head": head,
        "first_share": _number(first[head]),
        "sink_rate": _number((sink[:, 0] / inputs[:, 0]).mean()),
        "sink_head": int(sink_head),
        "sink_position": int(position[sink_head, key]),
        "sink_share": _number(seen[sink_head, key]) if seen[sink_head, key] >= 0 else None,
        "sink_logit_mass": _number(heads["sink_logit_mass"].max()),
        "value_drain": _ratio(norm[head, 0], rest.mean()) if rest.size else None,
        "least_drain": _least_drain(first, norm),
        "logit_max": _number(np.abs(logits).max()),
        "logit_std": _number(heads["logit_std"].mean()),
        "top_index": largest.tolist(),
        "top_size": [_number(first[h]) for h in largest],
        "num_nonfinite": int(heads["num_nonfinite"].sum()),
    }


def _least_drain(first: np.ndarray, norm: np.ndarray) -> float | None:
    """The smallest ratio of norms among heads that have a sink at the first token: some sinks are read, and those are not drained."""
    if norm.shape[1] < 2:
        return None
    drains = [_ratio(n[0], n[1:].mean()) for share, n in zip(first, norm, strict=True) if share > SINK_SHARE]
    return min((d for d in drains if d is not None), default=None)


def _weight(site: Site, result: WeightResult, top: int) -> Row:
    lines, matrix = result.lines, result.matrix
    largest_abs = np.maximum(np.abs(lines["min"]), np.abs(lines["max"]))
    ratio = np.nan_to_num(largest_abs / (lines["mean_abs"] + 1e-8))
    rows, columns = (ratio[lines["axis"] == axis] for axis in ("row", "column"))
    strongest = _largest(columns, top)
    return {
        **_place("weight", site),
        "abs_max": _number(matrix["abs_max"]),
        "median": _number(matrix["median"]),
        "max_to_median": _ratio(matrix["abs_max"], matrix["median"]),
        "kurtosis": _number(matrix["kurtosis"]),
        "row_ratio": _number(rows.max()),
        "column_ratio": _number(columns.max()),
        "weight_ratio": _number(max(rows.max(), columns.max())),
        "top_index": strongest.tolist(),
        "top_size": [_number(columns[j]) for j in strongest],
        "num_nonfinite": int(matrix["num_nan"] + matrix["num_inf"]),
    }


def _place(kind: str, site: Site) -> Row:
    return {"kind": kind, "layer": site.layer, "site": site.part, "expert": site.expert}


def _largest(size: np.ndarray, top: int) -> np.ndarray:
    """Indices of the largest, the first among equals first."""
    return np.argsort(-size, kind="stable")[:top]


def _number(x: Any) -> float | None:
    return float(x) if math.isfinite(x) else None


def _ratio(a: Any, b: Any) -> float | None:
    return _number(float(a) / float(b)) if float(b) > 0 else None
