"""2.2b  Weight outliers sit in the down projection, in the same channels as the activation outliers.

Two parts, both must hold.

    where      per block: (max / median of |w| in w.down) / (the largest of that in the other matrices of the block)      bar 1
    channels   places = (block, row of w.down) and (block, column of w.down). Weight outliers (outlier rows and columns, super weights)
               against activation outliers of the same block: rows with mlp.out or resid.out, columns with mlp.down.in; shared places
               against chance, hypergeometric

The second part holds when p < 0.05; it fails when p >= 0.05 and at most half of the weight outliers can be in such channels (exact 95 %
interval of the share); else it is open. Without weight outliers in w.down there is nothing to be in the same channels: the first part decides.
"""

from __future__ import annotations

from typing import NamedTuple

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict, all_of
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, share, times
from skerry.claims.words import counted, number, percent, span

DOWN = "w.down"
MATRICES = ("w.q", "w.k", "w.v", "w.o", "w.gate", "w.up", DOWN)
P, MOST = 0.05, 0.5
Place = tuple[int, str, int]


class Shared(NamedTuple):
    """The second part: its verdict and how to say it."""

    verdict: Verdict
    words: str


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    layers = _extremes(evidence)
    both = {n: at for n, at in layers.items() if DOWN in at and len(at) > 1}
    if not both:
        raise NotApplicable("the down projection, or the matrices to compare it with, were not measured")
    lead = [at[DOWN] / max(v for p, v in at.items() if p != DOWN) for at in both.values()]
    effect = times(lead)
    shared = _shared(evidence)
    why = (
        f"The largest weight of w.down is {span(effect)} times as far out (in medians) as that of the most extreme other matrix; w.down leads in "
        f"{sum(v > 1 for v in lead)} of {counted(len(both), 'block')}. {shared.words}"
    )
    return Judged(all_of([decide(effect, 1.0), shared.verdict]), why, effect, _figure(both))


def _extremes(evidence: Evidence) -> dict[int, dict[str, float]]:
    out: dict[int, dict[str, float]] = {}
    for row in evidence.rows("matrices"):
        median = row["median"]
        if row["site"] in MATRICES and row["layer"] is not None and median and median > 0:
            at = out.setdefault(row["layer"], {})
            at[row["site"]] = max(at.get(row["site"], 0.0), row["abs_max"] / median)
    return out


def _shared(evidence: Evidence) -> Shared:
    weights = {
        (f.layer, axis, index)
        for f in evidence.findings
        if f.site == DOWN and f.layer is not None
        for axis, index in (("row", f.row), ("column", f.column))
        if index is not None
    }
    if not weights:
        return Shared(
            "supported", "No row, column or entry of w.down stands out, so no channel can be shared."
        )
    active = _active(evidence)
    num = _num_places(evidence)
    from scipy.stats import hypergeom

    hits = len(weights & active)
    p = float(hypergeom.sf(hits - 1, max(num, len(weights | active)), len(active), len(weights)))
    part = share(hits, len(weights))
    verdict: Verdict = "supported" if p < P else "refuted" if part.high < MOST else "inconclusive"
    words = (
        f"{hits} of its {counted(len(weights), 'outlier line')} ({percent(part.value)}) write or read an outlier channel of the block's "
        f"activations; by chance {percent(len(active) / max(num, 1))}, p = {number(p)}."
    )
    return Shared(verdict, words)


def _active(evidence: Evidence) -> set[Place]:
    """Outlier channels as places of w.down: what it writes are its rows, what it reads its columns."""
    axis_of: dict[tuple[int | None, str], list[tuple[int, str]]] = {}
    for layer in range(evidence.num_layers):
        for part, axis in (("mlp.out", "row"), ("resid.out", "row"), ("mlp.down.in", "column")):
            axis_of.setdefault(evidence.tensor(layer, part), []).append((layer, axis))
    return {
        (layer, axis, f.channel)
        for f in evidence.findings
        if f.kind == "activation" and f.channel is not None
        for layer, axis in axis_of.get((f.layer, f.site), ())
    }


def _num_places(evidence: Evidence) -> int:
    seen = {
        r["layer"]: r["num_rows"] + r["num_columns"] for r in evidence.rows("matrices") if r["site"] == DOWN
    }
    return sum(seen.values())


def _figure(layers: dict[int, dict[str, float]]) -> Figure:
    rows = [(n, at[DOWN], DOWN) for n, at in sorted(layers.items())]
    rows += [
        (n, max(v for p, v in at.items() if p != DOWN), "most extreme other")
        for n, at in sorted(layers.items())
    ]
    return Figure(
        kind="line",
        x=tuple(n for n, _, _ in rows),
        y=tuple(v for _, v, _ in rows),
        series=tuple(p for _, _, p in rows),
        title="How far the largest weight of each matrix is out",
        x_title="block",
        y_title="largest |w| / median |w|",
    )


CLAIM = Claim(
    id="2.2b",
    section="2.2",
    source="An et al. 2025 (arXiv 2502.06415); Yu et al. 2024 (arXiv 2411.07191)",
    statement="Weight outliers sit in the down projection, in the same channels as the activation outliers.",
    measured="Where: max / median of |w| in w.down over the largest of that in the other matrices of the block, geometric mean over blocks. "
    "Channels: shared places of w.down's outlier rows, columns and super weights with the outlier channels that it writes and reads.",
    rule="Where holds when the whole 95 % interval over blocks lies above 1 and fails when it lies below. Channels holds when p < 0.05 "
    "(hypergeometric) and fails when p >= 0.05 and the share's 95 % interval lies below a half. Supported when both hold, refuted when one "
    "fails, else inconclusive.",
    effect_name="lead of w.down over the next matrix",
    unit="times",
    needs=("matrices",),
    judge=judge,
)
