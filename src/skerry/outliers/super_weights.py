"""Super weights: one entry of a down projection that makes the block's largest output out of its largest input.

    y_j = sum_k x_k W_jk        share = x_k W_jk / y_j

x_k is among the largest values of `mlp.down.in`, y_j among those of `mlp.out`, at the same token of the same input. Ours: x_k and y_j
each at least 50 x the median |x| of their site, |W_jk| >= 10 x the median |w| (of 10^8 Gaussian entries the largest has 9), and share >= 1/2: the one product explains the
output. The presets' rule (Yu et al. 2024) asks that both are the largest of their block and exceed 50, and looks at no weight.

Differs from `outlier column`: that is a whole line, found without any input; a large entry is no super weight (four of five largest
entries can be pruned without effect), only one that is used is.
Limit: with equal inputs every product has the share 1 / width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from skerry.outliers.finding import Finding
from skerry.outliers.frames import Frame, Frames
from skerry.outliers.lines import Lines
from skerry.outliers.presets import limit, listed

SPIKE = 50.0
SHARE = 0.5
WEIGHT = 10.0


class Crossing(NamedTuple):
    """One entry and the largest token it was seen at: rows of `values` for its input and output."""

    key: tuple[Any, ...]
    row: int
    column: int
    x: int
    y: int


def super_weights(frames: Frames, lines: Lines, chosen: str) -> list[Finding]:
    """Findings of type `super weight`.

    Args:
        frames: The tables.
        lines: The matrix's columns, for the score.
        chosen: Preset whose findings are listed.
    """
    values, weights = frames("values"), _entries(frames)
    medians = dict(zip(_keys(frames("matrices")), frames("matrices")["median"].tolist(), strict=True))
    out = []
    for c in _crossings(frames):
        x, y = float(values["value"][c.x]), float(values["value"][c.y])
        known = weights.get((*c.key, c.row, c.column))
        weight = y / x if known is None else known
        median = medians.get(c.key, 0.0)
        presets = _presets(frames, c, x, y, known if known is None or abs(known) >= WEIGHT * median else None)
        if not listed(presets, chosen):
            continue
        out.append(
            Finding(
                kind="weight",
                type="super weight",
                site="w.down",
                layer=c.key[0],
                expert=c.key[2],
                row=c.row,
                column=c.column,
                position=int(values["position"][c.y]),
                token=values.text("token", np.array([c.y]))[0],
                token_id=int(values["token_id"][c.y]),
                value=weight,
                ratio=abs(weight) / median if median > 0 else 0.0,
                score=lines.score_of((*c.key, "column"), c.column),
                presets=presets,
            )
        )
    return out


def _crossings(frames: Frames) -> list[Crossing]:
    """Every pair of a large input and a large output at one token; of each entry the one with the largest output."""
    v = frames("values")
    large = (
        np.abs(v["value"])
        >= np.minimum(SPIKE * frames.scale_of(v), limit("super-weight", "magnitude"))[v.group]
        if len(v)
        else []
    )
    best: dict[tuple[Any, ...], Crossing] = {}
    for key, rows in v.groups():
        layer, part, expert = key
        if part != "mlp.down.in" or not large[rows].any():
            continue
        group = v.index.get((layer, "mlp.out", expert), v.index.get((layer, "mlp.out", None)))
        if group is None:
            continue
        outputs: dict[tuple[int, int], list[int]] = {}
        answers = v.rows(group)
        for r in answers[large[answers]].tolist():
            outputs.setdefault((int(v["sample"][r]), int(v["position"][r])), []).append(r)
        for x in rows[large[rows]].tolist():
            for y in outputs.get((int(v["sample"][x]), int(v["position"][x])), ()):
                c = Crossing((layer, "w.down", expert), int(v["channel"][y]), int(v["channel"][x]), x, y)
                old = best.get((*c.key, c.row, c.column))
                if old is None or abs(v["value"][y]) > abs(v["value"][old.y]):
                    best[(*c.key, c.row, c.column)] = c
    return list(best.values())


def _presets(frames: Frames, c: Crossing, x: float, y: float, weight: float | None) -> tuple[str, ...]:
    v = frames("values")
    met = []
    small_x, small_y = (frames.scale.get(v.keys[v.group[r]], np.inf) for r in (c.x, c.y))
    spikes = abs(x) >= SPIKE * small_x and abs(y) >= SPIKE * small_y
    if weight is not None and spikes and x * weight / y >= SHARE:
        met.append("skerry")
    largest = v["rank"][c.x] == 0 and v["rank"][c.y] == 0
    if largest and min(abs(x), abs(y)) > limit("super-weight", "magnitude"):
        met.append("super-weight")
    return tuple(met)


def _entries(frames: Frames) -> dict[tuple[Any, ...], float]:
    """The largest entries of down projections, by matrix, row and column."""
    e = frames("entries")
    down = np.array([key[1] == "w.down" for key in e.keys], bool)
    rows: list[int] = np.flatnonzero(down[e.group]).tolist() if len(e) else []
    return {(*e.keys[e.group[r]], int(e["row"][r]), int(e["column"][r])): float(e["value"][r]) for r in rows}


def _keys(frame: Frame) -> list[tuple[Any, ...]]:
    return [frame.keys[g] for g in frame.group]
