"""3.3d  Value vectors of tokens that receive outlier attention are smaller.

Per head with a sink: norm of the value vector at its strongest position / mean norm of its other value vectors; geometric mean over heads.
Below 0.2 a head writes next to nothing there (Fesser et al. call it a NOP sink). The same position in heads without a sink is said with the
verdict: where its values are small in every head, the head's attention is not the reason.
"""

from __future__ import annotations

from skerry.claims.claim import Claim, Figure, Judged
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, opposite, times
from skerry.claims.words import counted, number, span

NOP = 0.2


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    heads = [h for h in evidence.sink_heads() if h.value_norm_ratio > 0]
    ratios = [h.value_norm_ratio for h in heads]
    effect = times(ratios)
    named = {(h.layer, h.head) for h in evidence.sink_heads()}
    others = [h for h in evidence.heads() if (h.layer, h.head) not in named and h.value_norm_ratio > 0]
    control = (
        f"; at the strongest position of the {counted(len(others), 'head')} without a sink {number(times([h.value_norm_ratio for h in others]).value)}"
        if others
        else ""
    )
    why = (
        f"At the sinks of {counted(len(heads), 'head')} value vectors are {span(effect)} times as long as elsewhere{control}. "
        f"{sum(r < NOP for r in ratios)} of {len(ratios)} are below {NOP}, {sum(r > 1 for r in ratios)} above 1."
    )
    shown = [*heads, *others]
    figure = Figure(
        kind="scatter",
        x=tuple(h.sink_mass for h in shown),
        y=tuple(h.value_norm_ratio for h in shown),
        series=("sink",) * len(heads) + ("no sink",) * len(others),
        title="Attention that a position receives and the size of its value vector, every head",
        x_title="attention on the head's strongest key",
        y_title="norm of its value / mean norm of the others",
    )
    return Judged(opposite(decide(effect, 1.0)), why, effect, figure)


CLAIM = Claim(
    id="3.3d",
    section="3.3",
    source="An et al. 2025 (arXiv 2502.06415); Guo et al. 2024 (arXiv 2410.13835)",
    statement="Value vectors of tokens that receive outlier attention are smaller than others.",
    measured="Norm of the value vector at a head's sink over the mean norm of its other value vectors; geometric mean over heads with sinks.",
    rule="Supported when the whole 95 % interval over heads lies below 1, refuted when it lies above, else inconclusive.",
    effect_name="value norm at sinks / elsewhere",
    unit="times",
    needs=("heads", "keys"),
    judge=judge,
)
