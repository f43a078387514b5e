"""5.4  The review's comparison of strategies, recomputed: OS+ keeps the accuracy, naive clipping loses it.

Of the table's rows two can be measured on a model that is there. Under the scheme of fewest bits that both were measured with:

    order       damage of clipping - damage of OS+                    above 0: the intervals do not overlap
    gain        damage without any method - damage of OS+             above 0: the intervals do not overlap
    clipping    damage of clipping                                    bar 0.1 (severe)

All must hold. The third row of the table, attention that is designed anew, changes how a model is trained; nothing is said about it before models
are trained in pairs. Nor is anything said about the stability of training.
"""

from __future__ import annotations

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict, all_of
from skerry.claims.costs import (
    CLIPPING,
    FLOAT,
    PLAIN,
    SEVERE,
    Cost,
    costs,
    of_scheme,
    os_plus,
    outcome_of,
    plain_of,
    scheme_of,
)
from skerry.claims.evidence import Evidence
from skerry.claims.stages import command_of
from skerry.claims.statistics import decide
from skerry.claims.words import number, span

REDESIGN = (
    "Attention redesign: not applicable, it needs a model that is trained with it, which was not measured."
)


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    every = costs(evidence)
    name = os_plus(c.method for c in every if c.scheme != FLOAT)
    tamed = [c for c in every if c.method == name and c.scheme != FLOAT]
    clipping = [c for c in every if c.method == CLIPPING and c.scheme != FLOAT]
    shared = [c.scheme for c in tamed if of_scheme(clipping, c.scheme) is not None]
    if not shared:
        absent = " and ".join(word for word, rows in (("OS+", tamed), ("clipping", clipping)) if not rows)
        raise NotApplicable(
            f"{absent or 'OS+ and clipping under one scheme'} not measured; `{command_of('methods')}` measures both. {REDESIGN}"
        )
    scheme = min(shared, key=_bits)
    ours, clipped = (of_scheme(rows, scheme) for rows in (tamed, clipping))
    plain = plain_of(every, scheme)
    assert ours is not None and clipped is not None
    verdicts = [
        apart(clipped.change, ours.change),
        decide(clipped.change, SEVERE),
        apart(plain.change, ours.change) if plain is not None else "inconclusive",
    ]
    rows = [c for c in (plain, ours, clipped) if c is not None]
    told = "; ".join(f"{'no method' if c.method in PLAIN else c.method} {span(c.change)}" for c in rows)
    effect = Interval(
        clipped.change.value - ours.change.value,
        clipped.change.low - ours.change.high,
        clipped.change.high - ours.change.low,
    )
    why = f"Under {scheme} ({outcome_of(evidence, 'methods')}): {told}. Clipping costs {number(effect.value)} more than OS+. {REDESIGN}"
    return Judged(all_of(verdicts), why, effect, _figure(rows, scheme, outcome_of(evidence, "methods")))


def apart(more: Interval, less: Interval) -> Verdict:
    """Whether one interval lies wholly above another."""
    if more.low > less.high:
        return "supported"
    return "refuted" if more.high < less.low else "inconclusive"


def _bits(text: str) -> float:
    scheme = scheme_of(text)
    parts = (None, None) if scheme is None else (scheme.weights, scheme.inputs)
    return sum(16.0 if p is None else float(p.bits) for p in parts)


def _figure(rows: list[Cost], scheme: str, unit: str) -> Figure:
    return Figure(
        kind="interval",
        x=tuple("no method" if c.method in PLAIN else c.method for c in rows),
        y=tuple(c.change.value for c in rows),
        low=tuple(c.change.low for c in rows),
        high=tuple(c.change.high for c in rows),
        title=f"The comparison, recomputed under {scheme}; attention redesign was not measured",
        x_title="strategy",
        y_title=unit,
    )


CLAIM = Claim(
    id="5.4",
    section="5.4",
    source="the review, table 1; Wei et al. 2023, OS+ (arXiv 2304.09145); An et al. 2025 (arXiv 2502.06415)",
    statement="Of the strategies, OS+ makes quantization accurate and naive clipping degrades the model severely.",
    measured="Damage (loss; of an encoder distance) with OS+, with clipping and without any method, under the scheme of fewest bits that OS+ and "
    "clipping were both measured with. Attention redesign is not applicable: it needs a model that is trained with it.",
    rule="Three parts: OS+ costs less than clipping; OS+ costs less than no method; clipping costs more than 0.1, each with whole 95 % intervals that "
    "do not overlap or do not reach the bar. Supported when all hold, refuted when one holds the other way round, else inconclusive.",
    effect_name="damage of clipping - damage of OS+",
    unit="loss or distance",
    needs=("methods",),
    judge=judge,
)
