"""2.2d  Shallow and middle layers carry the most extreme activation outliers; they decline in the last layers.

For every kind of activation tensor that holds outliers somewhere (attn.in, mlp.out, ...)

    r = geometric mean of max / median over the first blocks / the same over the last blocks

where the last blocks are a quarter of all, rounded up, at least 2. The mean of log r over kinds decides; a block counts for nothing where
the tensor was not measured. The number of findings is said with the verdict.
"""

from __future__ import annotations

import math

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, last_layers, times
from skerry.claims.words import counted, percent, span

MIN_LAYERS = 4


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    num = evidence.num_layers
    if num < MIN_LAYERS:
        raise NotApplicable(
            f"the model has {counted(num, 'block')}; first and last ones need at least {MIN_LAYERS}"
        )
    kinds = {s.site for s in evidence.outlier_tensors() if s.layer is not None}
    last = last_layers(num)
    ratios = {part: r for part in sorted(kinds) if (r := _ratio(evidence, part, num - last)) is not None}
    if not ratios:
        raise NotApplicable("no kind of activation tensor was measured in first and last blocks alike")
    effect = times(list(ratios.values()))
    found = [f.layer for f in evidence.findings if f.kind == "activation" and f.layer is not None]
    late = sum(n >= num - last for n in found)
    why = (
        f"max / median is {span(effect)} times as large in the first {num - last} blocks as in the last {last}, over "
        f"{counted(len(ratios), 'kind')} of tensor that {'holds' if len(ratios) == 1 else 'hold'} outliers. {late} of {counted(len(found), 'finding')} "
        f"({percent(late / len(found))}) are in the last {last} blocks, which are {percent(last / num)} of all."
    )
    return Judged(decide(effect, 1.0), why, effect, _figure(evidence, sorted(ratios)))


def _sizes(evidence: Evidence, part: str) -> dict[int, float]:
    """Block to max / median, the largest of its experts."""
    out: dict[int, float] = {}
    for s in evidence.profiles:
        if s.site == part and s.layer is not None:
            out[s.layer] = max(out.get(s.layer, 0.0), s.max_to_median)
    return out


def _ratio(evidence: Evidence, part: str, split: int) -> float | None:
    sizes = _sizes(evidence, part)
    early, late = [v for n, v in sizes.items() if n < split], [v for n, v in sizes.items() if n >= split]
    if not early or not late:
        return None
    return math.exp(_log_mean(early) - _log_mean(late))


def _log_mean(values: list[float]) -> float:
    return math.fsum(map(math.log, values)) / len(values)


def _figure(evidence: Evidence, parts: list[str]) -> Figure:
    sizes = {part: _sizes(evidence, part) for part in parts}
    blocks = sorted({n for at in sizes.values() for n in at})
    strongest = max(parts, key=lambda p: max(sizes[p].values()))
    mean = [
        (n, math.exp(_log_mean([at[n] for at in sizes.values() if n in at])), "mean of all kinds")
        for n in blocks
    ]
    rows = [*mean, *((n, v, strongest) for n, v in sorted(sizes[strongest].items()))]
    return Figure(
        kind="line",
        x=tuple(n for n, _, _ in rows),
        y=tuple(v for _, v, _ in rows),
        series=tuple(part for _, _, part in rows),
        title="How extreme activations are along the depth: the mean, and the strongest kind of tensor",
        x_title="block",
        y_title="largest |x| / median |x|",
    )


CLAIM = Claim(
    id="2.2d",
    section="2.2",
    source="An et al. 2025 (arXiv 2502.06415); Sun et al. 2024 (arXiv 2402.17762)",
    statement="Shallow and middle layers carry the strongest activation outliers; they decline in the last layers.",
    measured="max / median of |x| in the first blocks over that in the last ones (a quarter of all, at least 2), for every kind of tensor that "
    "holds outliers; geometric mean.",
    rule="Supported when the whole 95 % interval over kinds of tensor lies above 1, refuted when it lies below, else inconclusive.",
    effect_name="first blocks / last blocks",
    unit="times",
    needs=("sites",),
    judge=judge,
)
