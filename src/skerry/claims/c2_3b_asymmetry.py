"""2.3b  Outlier channels are asymmetric; a per-channel shift shrinks the range.

Read at attn.in and mlp.in, where OS+ shifts, in the tensors with outlier channels. Two parts, both must hold. With [l_j, u_j] the range of
channel j,

    asymmetric   |l_j + u_j| / (u_j - l_j) >= 1/2, one side at least three times the other: share of the outlier channels, bar 1/2
    shift        range of the tensor / range after every channel is shifted to its own centre, geometric mean over tensors, bar 1.25

The shift never makes a range larger, so that 1 would be no bar; 1.25 takes a fifth of the range away. OPT-66B has channels in (-97, -58) and
(5.7, 43), and goes from 140 to 40.
"""

from __future__ import annotations

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, all_of
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, share, times
from skerry.claims.words import counted, percent_span, span
from skerry.outliers.finding import Finding

SHIFTED = ("attn.in", "mlp.in")
ASYMMETRY, BAR_SHARE, BAR_SHIFT = 0.5, 0.5, 1.25


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    places = {evidence.tensor(n, part) for n in range(evidence.num_layers) for part in SHIFTED}
    channels = [
        f
        for f in evidence.findings
        if f.type == "outlier channel"
        and (f.layer, f.site) in places
        and f.expert is None
        and f.range is not None
        and f.range[1] > f.range[0]
    ]
    if not channels:
        raise NotApplicable("the scan found no outlier channel at attn.in or mlp.in")
    with_outliers = {(f.layer, f.site) for f in channels}
    gains = [
        s.shift_gain for s in evidence.profiles if (s.layer, s.site) in with_outliers and s.expert is None
    ]
    effect = times(gains)
    off = share(sum(asymmetry(f) >= ASYMMETRY for f in channels), len(channels))
    never = sum(asymmetry(f) > 1 for f in channels)
    why = (
        f"{percent_span(off)} of {counted(len(channels), 'outlier channel')} reach at least three times as far to one side as to the other; "
        f"{never} never {'crosses' if never == 1 else 'cross'} zero. Shifting every channel to its centre divides the range by {span(effect)} "
        f"({counted(len(gains), 'tensor')})."
    )
    verdict = all_of([decide(off, BAR_SHARE), decide(effect, BAR_SHIFT)])
    return Judged(verdict, why, effect, _figure(channels))


def asymmetry(f: Finding) -> float:
    """|centre| / half width of its range; above 1 the channel never crosses zero."""
    assert f.range is not None
    low, high = f.range
    return abs(high + low) / (high - low)


def _figure(channels: list[Finding]) -> Figure:
    shown = sorted(channels, key=lambda f: -abs(f.value))[:24]
    ranges = [f.range for f in shown if f.range is not None]
    return Figure(
        kind="interval",
        x=tuple(f"{f.layer}.{f.site} channel {f.channel}" for f in shown),
        y=tuple((low + high) / 2 for low, high in ranges),
        low=tuple(low for low, _ in ranges),
        high=tuple(high for _, high in ranges),
        title="Range of the outlier channels and its centre, largest first",
        x_title="channel",
        y_title="value",
    )


CLAIM = Claim(
    id="2.3b",
    section="2.3",
    source="Wei et al. 2023, OS+ (arXiv 2304.09145)",
    statement="Outlier channels are asymmetric; shifting each channel to its centre shrinks the range.",
    measured="At attn.in and mlp.in: share of outlier channels that reach three times as far to one side as to the other; range of the tensor "
    "over its range after the shift, geometric mean over tensors with outlier channels.",
    rule="Asymmetry holds when the share's whole 95 % interval lies above 0.5 and fails when it lies below; shrinking holds when the whole "
    "interval over tensors lies above 1.25 and fails when it lies below. Supported when both hold, refuted when one fails, else inconclusive.",
    effect_name="range / range after the shift",
    unit="times",
    needs=("channels",),
    judge=judge,
)
