"""2.4a  Outlier channels of weights, activations and sinks coincide more than chance.

Read from the overlaps of the scan (outliers/alignment.py): weights with activations, by channel of the residual stream; activations with
attention, by token. Each has its chance by the hypergeometric law. The p values of all overlaps are corrected together (Holm 1979). Shown is
the share of places that are common, of those that could be (the smaller set), over all overlaps.
"""

from __future__ import annotations

from typing import NamedTuple

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict
from skerry.claims.evidence import Evidence
from skerry.claims.statistics import share
from skerry.claims.words import number, percent_span
from skerry.outliers.finding import Alignment

P, MOST = 0.05, 0.5
WEIGHTS, ATTENTION = "weights with activations", "activations with attention"


class Bridge(NamedTuple):
    """Overlaps of two kinds.

    Attributes:
        relations: Those that the scan could compare.
        p: The smallest p value among them, corrected over all overlaps.
    """

    relations: list[Alignment]
    p: float


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    bridges = _bridges(evidence)
    relations = [a for b in bridges.values() for a in b.relations]
    if not relations:
        raise NotApplicable(
            "the scan did not find outliers of two kinds (weights, activations, attention) that could coincide"
        )
    hits = sum(len(a.shared) for a in relations)
    effect = share(hits, sum(min(len(a.left), len(a.right)) for a in relations))
    found = {name: b.p < P for name, b in bridges.items() if b.relations}
    verdict: Verdict = "inconclusive"
    if len(found) == len(bridges) and all(found.values()):
        verdict = "supported"
    elif not any(found.values()) and effect.high < MOST:
        verdict = "refuted"
    told = "; ".join(_words(name, b) for name, b in bridges.items())
    why = f"{percent_span(effect)} of the places that could coincide do: {told}."
    return Judged(verdict, why, effect, _figure(relations))


def _bridges(evidence: Evidence) -> dict[str, Bridge]:
    """Overlaps by which two kinds they compare, with Holm's correction over all of them."""
    use = {WEIGHTS: [], ATTENTION: []}  # type: dict[str, list[Alignment]]
    for a in evidence.summary.profiles.alignment:
        kind = (
            ATTENTION
            if "attention sinks" in a.relation
            else None
            if "massive activations" in a.relation
            else WEIGHTS
        )
        if kind and a.p_value is not None and a.left and a.right:
            use[kind].append(a)
    ranked = sorted((a.p_value or 0.0, name) for name, relations in use.items() for a in relations)
    best, running = dict.fromkeys(use, 1.0), 0.0
    for i, (p, name) in enumerate(ranked):
        running = max(running, min(1.0, p * (len(ranked) - i)))
        best[name] = min(best[name], running)
    return {name: Bridge(relations, best[name]) for name, relations in use.items()}


def _words(name: str, bridge: Bridge) -> str:
    if not bridge.relations:
        return f"{name} could not be compared, since one side has no outlier"
    hits = sum(len(a.shared) for a in bridge.relations)
    could = sum(min(len(a.left), len(a.right)) for a in bridge.relations)
    return f"{name} {hits} of {could}, corrected p = {number(bridge.p)}"


def _figure(relations: list[Alignment]) -> Figure:
    return Figure(
        kind="bar",
        x=tuple(a.relation for a in relations for _ in range(2)),
        y=tuple(v for a in relations for v in (a.overlap, a.expected)),
        series=("found", "by chance") * len(relations),
        title="Do outliers of different kinds lie in the same places?",
        x_title="what is compared",
        y_title="Jaccard index, 0 to 1",
    )


CLAIM = Claim(
    id="2.4a",
    section="2.4",
    source="An et al. 2025 (arXiv 2502.06415)",
    statement="Outliers of weights, activations and attention coincide in channels and tokens more than chance.",
    measured="Overlaps found by the scan: channels of weight and activation outliers, tokens of massive activations and attention sinks, each "
    "against the hypergeometric law; share of the places that could coincide and do.",
    rule="Supported when weights coincide with activations and activations with attention, each with p < 0.05 after Holm's correction over all "
    "overlaps; refuted when no overlap has that and the share's whole 95 % interval lies below 0.5; else inconclusive, also when one side "
    "has no outlier.",
    effect_name="places shared, of those that could be",
    unit="share",
    needs=("channels", "lines"),
    judge=judge,
)
