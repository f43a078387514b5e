"""Every attention head, and every block, in a few numbers; all of them are read from tables, none is tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skerry.outliers.finding import Finding, HeadProfile, LayerProfile, SiteProfile
from skerry.outliers.frames import Frames
from skerry.outliers.keys import Keys


def head_profiles(frames: Frames, keys: Keys) -> tuple[HeadProfile, ...]:
    """A profile of every head, in order of layer and head."""
    f, out = keys.frame, []
    heads = {(h["layer"], h["head"]): h for h in frames.tables["heads"].to_pylist()}
    for key in sorted(heads.keys() & f.index.keys()):
        h, row = heads[key], keys.strongest(f.rows(f.index[key]))
        ratio = keys.value_ratio(row)
        out.append(
            HeadProfile(
                layer=key[0],
                head=key[1],
                sink_position=int(f["position"][row]),
                sink_mass=_number(f["alpha"][row]),
                sink_rate=float(keys.recurrence[row]),
                uniform_mass=float(keys.uniform[row]),
                entropy=_number(h["entropy"]),
                relative_entropy=_number(h["entropy"]) / h["entropy_uniform"]
                if h["entropy_uniform"]
                else 0.0,
                logit_max=_number(h["logit_max"]),
                logit_range=_number(h["logit_max"]) - _number(h["logit_min"]),
                sink_logit_mass=_number(h["sink_logit_mass"]),
                value_norm_ratio=1.0 if ratio is None else ratio,
            )
        )
    return tuple(out)


def layer_profiles(
    frames: Frames,
    keys: Keys,
    sites: Sequence[SiteProfile],
    heads: Sequence[HeadProfile],
    findings: Sequence[Finding],
) -> tuple[LayerProfile, ...]:
    """A profile of every block that has a site, a head or a finding."""
    first = _first_tokens(keys)
    named = {s.layer for s in sites} | {h.layer for h in heads} | {f.layer for f in findings}
    layers = {layer for layer in named if layer is not None}
    return tuple(_layer(n, sites, heads, findings, first.get(n)) for n in sorted(layers))


def _layer(
    layer: int,
    sites: Sequence[SiteProfile],
    heads: Sequence[HeadProfile],
    findings: Sequence[Finding],
    first: tuple[float, float] | None,
) -> LayerProfile:
    resid = next((s for s in sites if s.layer == layer and s.site == "resid.out"), None)
    down = [s.abs_max for s in sites if s.layer == layer and s.site == "mlp.down.in"]
    masses = [h.sink_mass for h in heads if h.layer == layer]
    kinds = [f.kind for f in findings if f.layer == layer]
    return LayerProfile(
        layer=layer,
        resid_abs_max=None if resid is None else resid.abs_max,
        resid_median=None if resid is None else resid.median,
        down_in_abs_max=max(down) if down else None,
        num_activation=kinds.count("activation"),
        num_weight=kinds.count("weight"),
        num_attention=kinds.count("attention"),
        sink_mass=float(np.mean(masses)) if masses else None,
        first_token_mass=None if first is None else first[0],
        sink_rate=None if first is None else first[1],
    )


def _first_tokens(keys: Keys) -> dict[int, tuple[float, float]]:
    """Layer to mean over heads of alpha of position 0, and of the share of inputs in which it is a sink."""
    f = keys.frame
    rows = np.flatnonzero(f["position"] == 0) if len(f) else np.zeros(0, np.int64)
    by_layer: dict[int, list[int]] = {}
    for r in rows.tolist():
        by_layer.setdefault(f.keys[f.group[r]][0], []).append(r)
    return {
        layer: (float(np.nan_to_num(f["alpha"][at]).mean()), float(keys.recurrence[at].mean()))
        for layer, at in by_layer.items()
    }


def _number(x: Any) -> float:
    return float(x) if x is not None and np.isfinite(x) else 0.0
