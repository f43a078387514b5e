"""4.1b  Asymmetry of outliers wastes levels of a symmetric range.

A symmetric grid reaches from -a to a, a = max |x|. If every channel were moved to its own centre (a change that costs nothing, OS+), half the
range of the widest channel would do. With [l_j, u_j] the range of channel j:

    waste = 1 - max_j (u_j - l_j) / 2a           share of the levels that are spent on asymmetry            bar 1/4

over the tensors at attn.in and mlp.in, where OS+ shifts, that have outlier channels. What follows an activation function is left out: it is one-sided
with and without outliers. A quarter of the levels is 0.4 bits. The part of it that is never
reached by any value at all, 1 - (max - min) / 2a, is told with it. Limit: a tensor whose channels are all symmetric has waste 0.
"""

from __future__ import annotations

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, mean_over
from skerry.claims.words import counted, percent_span
from skerry.outliers.finding import SiteProfile

READ = ("attn.in", "mlp.in")
BAR = 0.25


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    ends = {
        (r["layer"], r["site"], r["expert"]): (r["min"], r["max"])
        for r in evidence.rows("sites")
        if r["min"] is not None and r["max"] is not None and r["max"] > r["min"]
    }
    here = {evidence.tensor(n, part) for n in range(evidence.num_layers) for part in READ}
    read = [s for s in evidence.profiles if (s.layer, s.site) in here and _key(s) in ends]
    outliers = {(f.layer, f.site, f.expert) for f in evidence.findings if f.type == "outlier channel"}
    with_outliers = [s for s in read if _key(s) in outliers]
    if not with_outliers:
        raise NotApplicable("the scan found no outlier channel at attn.in or mlp.in")
    spent = [_wasted(s, *ends[_key(s)]) for s in with_outliers]
    never = [_never(*ends[_key(s)]) for s in with_outliers]
    others = [_wasted(s, *ends[_key(s)]) for s in read if _key(s) not in outliers]
    effect = mean_over(spent)
    why = (
        f"In {counted(len(spent), 'tensor')} with outlier channels {percent_span(effect)} of the levels of a symmetric grid are spent on asymmetry; "
        f"{percent_span(mean_over(never))} are reached by no value at all."
    )
    if others:
        why += f" In {counted(len(others), 'tensor')} without outlier channels it is {percent_span(mean_over(others))}."
    return Judged(decide(effect, BAR), why, effect, _figure(with_outliers, spent))


def _key(s: SiteProfile) -> tuple[int | None, str, int | None]:
    return s.layer, s.site, s.expert


def _wasted(s: SiteProfile, low: float, high: float) -> float:
    """`shift_gain` is the range over the widest channel's."""
    return 1 - (high - low) / max(s.shift_gain, 1.0) / (2 * max(abs(low), abs(high)))


def _never(low: float, high: float) -> float:
    return 1 - (high - low) / (2 * max(abs(low), abs(high)))


def _figure(sites: list[SiteProfile], spent: list[float]) -> Figure:
    rows = sorted(zip(sites, spent, strict=True), key=lambda pair: -pair[1])[:24]
    return Figure(
        kind="bar",
        x=tuple(f"{s.layer}.{s.site}" + (f"[{s.expert}]" if s.expert is not None else "") for s, _ in rows),
        y=tuple(waste for _, waste in rows),
        title="Share of a symmetric grid's levels that is spent on asymmetry, largest first",
        x_title="tensor",
        y_title="share of the levels",
    )


CLAIM = Claim(
    id="4.1b",
    section="4.1",
    source="Wei et al. 2023, OS+ (arXiv 2304.09145), section 3",
    statement="Outliers are asymmetric, which forces a wider symmetric range and wastes many of its levels.",
    measured="1 - (range of the widest channel) / (2 max |x|) at attn.in and mlp.in, in the tensors that have outlier channels, mean over "
    "tensors: levels of a symmetric grid that would be free if every channel stood at its own centre.",
    rule="Supported when the whole 95 % interval over tensors lies above a quarter of the levels, refuted when it lies below, else inconclusive.",
    effect_name="levels spent on asymmetry",
    unit="share",
    needs=("sites",),
    judge=judge,
)
