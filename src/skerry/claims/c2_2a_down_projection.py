"""2.2a  Activation outliers are most extreme at the input of the down projection.

Compared are the tensors that the projections of a block read, because that is where a quantiser meets them: attn.in, attn.mix, mlp.in,
mlp.down.in. In block l

    e_l = (max / median of mlp.down.in) / (largest max / median of the other three)

The residual stream and what sublayers write are sums that gather outliers of many blocks; how the down projection's input stands
against those too is said with the verdict and drawn, and decides nothing. Experts: the largest of the block counts.
"""

from __future__ import annotations

import math

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, times
from skerry.claims.words import counted, number, span

DOWN = "mlp.down.in"
READ = ("attn.in", "attn.mix", "mlp.in", DOWN)


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    evidence.outlier_tensors()
    layers = _extremes(evidence)
    both = {n: at for n, at in layers.items() if DOWN in at and any(p in at for p in READ if p != DOWN)}
    if not both:
        raise NotApplicable(f"{DOWN} or the tensors to compare it with were not measured")
    lead = {n: at[DOWN] / max(at[p] for p in READ if p in at and p != DOWN) for n, at in both.items()}
    effect = times(list(lead.values()))
    first = sum(at[DOWN] >= max(at.values()) for at in both.values())
    means = {p: _geometric([at[p] for at in both.values() if p in at]) for at in both.values() for p in at}
    top = max(means, key=lambda p: means[p])
    why = (
        f"max / median of {DOWN} is {span(effect)} times that of the most extreme other tensor that a projection reads; it leads them in "
        f"{sum(v > 1 for v in lead.values())} of {counted(len(both), 'block')}. Of all tensors of a block, sums and outputs included, it is first in "
        f"{first}; on average {top} is most extreme ({number(means[top])} medians; {DOWN}: {number(means[DOWN])})."
    )
    return Judged(decide(effect, 1.0), why, effect, _figure(means))


def _extremes(evidence: Evidence) -> dict[int, dict[str, float]]:
    """Block to part to max / median; the largest of its experts."""
    out: dict[int, dict[str, float]] = {}
    for s in evidence.summary.profiles.sites:
        if s.layer is not None and s.max_to_median > 0:
            at = out.setdefault(s.layer, {})
            at[s.site] = max(at.get(s.site, 0.0), s.max_to_median)
    return out


def _geometric(values: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _figure(means: dict[str, float]) -> Figure:
    names = sorted(means, key=lambda p: -means[p])
    return Figure(
        kind="bar",
        x=tuple(names),
        y=tuple(means[p] for p in names),
        series=tuple("read by a projection" if p in READ else "other" for p in names),
        title="How extreme each tensor of a block is",
        x_title="tensor, geometric mean over blocks",
        y_title="largest |x| / median |x|",
    )


CLAIM = Claim(
    id="2.2a",
    section="2.2",
    source="An et al. 2025 (arXiv 2502.06415); Chen et al. 2024, PrefixQuant (arXiv 2410.05265)",
    statement="Of the tensors that a block's projections read, the input of the down projection holds the most extreme activation outliers.",
    measured="max / median of |x| at mlp.down.in over the largest max / median of the other projection inputs (attn.in, attn.mix, mlp.in), "
    "geometric mean over blocks.",
    rule="Supported when the whole 95 % interval over blocks lies above 1, refuted when it lies below, else inconclusive.",
    effect_name="lead of mlp.down.in over the next projection input",
    unit="times",
    needs=("sites",),
    judge=judge,
)
