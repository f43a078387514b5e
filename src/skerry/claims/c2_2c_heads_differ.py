"""2.2c  Attention outliers differ strongly between heads.

For every block with an attention sink, with m_h the attention that a query of head h gives on average to the head's strongest key,

    G = mean over pairs of heads of |m_g - m_h| / (2 mean_h m_h)        the Gini coefficient, 0 all equal, 1 one head has everything

averaged over blocks. m_h is a mean over all inputs, so that what differs are heads and not samples. G = 0.25 says that two heads differ by
half of what they have on average. The interval draws heads again within their block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import decide, resampled
from skerry.claims.words import counted, number, percent, span
from skerry.outliers.finding import HeadProfile

BAR = 0.25


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    heads = evidence.heads()
    found = {f.layer for f in evidence.findings if f.type in ("sink position", "sink token")}
    layers = {n: [h for h in heads if h.layer == n] for n in sorted({h.layer for h in heads} & found)}
    layers = {n: of for n, of in layers.items() if len(of) > 1}
    if not layers:
        several = any(h.head > 0 for h in heads)
        raise NotApplicable(
            "the scan found no attention sink in this model" if several else "blocks have one head each"
        )
    masses = [np.array([h.sink_mass for h in of]) for of in layers.values()]
    effect = resampled(masses, lambda groups: float(np.mean([gini(g) for g in groups])))
    logits = float(np.mean([gini(np.array([h.logit_range for h in of])) for of in layers.values()]))
    why = (
        f"Over {counted(len(layers), 'block')} with sinks the Gini coefficient of the heads' strongest key is {span(effect)}; its attention goes from "
        f"{percent(min(m.min() for m in masses))} to {percent(max(m.max() for m in masses))}. Of the range of logits it is {number(logits)}."
    )
    return Judged(decide(effect, BAR), why, effect, _figure([h for of in layers.values() for h in of]))


def gini(x: Float[np.ndarray, "head"]) -> float:
    """Mean difference of two different heads over twice the mean; 0 for a single head."""
    n, mean = len(x), float(x.mean())
    if n < 2 or mean <= 0:
        return 0.0
    rank = np.arange(1, n + 1)
    return float(((2 * rank - n - 1) * np.sort(x)).sum() / (n * (n - 1) * mean))


def _figure(heads: Sequence[HeadProfile]) -> Figure:
    return Figure(
        kind="scatter",
        x=tuple(h.layer for h in heads),
        y=tuple(h.sink_mass for h in heads),
        title="Attention on the strongest key, every head of the blocks with sinks",
        x_title="block",
        y_title="share of attention",
    )


CLAIM = Claim(
    id="2.2c",
    section="2.2",
    source="An et al. 2025 (arXiv 2502.06415); Gu et al. 2025 (arXiv 2410.10781)",
    statement="Attention outliers differ strongly between the heads of a layer.",
    measured="Gini coefficient, over the heads of a block, of the attention that the head's strongest key receives; mean over blocks with sinks.",
    rule="Supported when the whole 95 % interval over heads lies above 0.25 (two heads differ by half of their mean), refuted when it lies "
    "below, else inconclusive.",
    effect_name="Gini coefficient over heads",
    unit="0 equal, 1 one head",
    needs=("heads", "keys"),
    judge=judge,
)
