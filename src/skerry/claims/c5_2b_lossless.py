"""5.2b  With OS+ quantization to 8 and to 6 bits is nearly lossless.

    change = damage of the model tamed by OS+ and quantized - damage of the original             bar 0.02

Both weights and inputs have the bits; every scheme of 8 and of 6 bits that was measured counts, and both numbers of bits must be there. OS+
counts as its authors publish it, where that was measured. 0.02 nats is a perplexity 2 % up. What the same schemes cost without any method is told with it: where plain rounding is as near, OS+ is not why.
"""

from __future__ import annotations

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict, all_of
from skerry.claims.costs import (
    LOSSLESS,
    OS_PLUS,
    Cost,
    costs,
    integer_bits,
    os_plus,
    outcome_of,
    plain_of,
)
from skerry.claims.evidence import Evidence
from skerry.claims.stages import command_of
from skerry.claims.statistics import decide, opposite
from skerry.claims.words import span

BITS = (8, 6)


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    every = costs(evidence)
    near = [c for c in every if integer_bits(c.scheme) in BITS]
    name = os_plus(c.method for c in near)
    if name is None:
        raise NotApplicable(f"OS+ was not measured at 8 or 6 bits; `{command_of('methods')}` measures it")
    found = [c for c in near if c.method == name]
    missing = [bits for bits in BITS if all(integer_bits(c.scheme) != bits for c in found)]
    verdicts: list[Verdict] = [opposite(decide(c.change, LOSSLESS)) for c in found]
    verdicts += ["inconclusive" for _ in missing]
    effect = max((c.change for c in found), key=lambda i: i.value)
    told = "; ".join(f"{c.scheme} {span(c.change)}{_without(every, c)}" for c in found)
    why = f"Damage with {name} ({outcome_of(evidence, 'methods')}): {told}."
    ours = [c for c in near if c.method in OS_PLUS and c.method != name]
    why += (
        f" With {ours[0].method}: {', '.join(f'{c.scheme} {span(c.change)}' for c in ours)}." if ours else ""
    )
    why += f" {' and '.join(f'{bits} bits' for bits in missing)} not measured." if missing else ""
    return Judged(all_of(verdicts), why, effect, _figure(found, every, outcome_of(evidence, "methods")))


def _without(every: list[Cost], cost: Cost) -> str:
    same = plain_of(every, cost.scheme)
    return f" (without any method {span(same.change)})" if same is not None else ""


def _figure(found: list[Cost], every: list[Cost], unit: str) -> Figure:
    rows = [*found, *(same for c in found if (same := plain_of(every, c.scheme)) is not None)]
    rows.sort(key=lambda c: c.scheme)
    return Figure(
        kind="interval",
        x=tuple(f"{c.scheme}, {c.method}" for c in rows),
        y=tuple(c.change.value for c in rows),
        low=tuple(c.change.low for c in rows),
        high=tuple(c.change.high for c in rows),
        title="Damage with OS+ and without any method",
        x_title="scheme and method",
        y_title=unit,
    )


CLAIM = Claim(
    id="5.2b",
    section="5.2",
    source="Wei et al. 2023, OS+ (arXiv 2304.09145), tables 3 to 5",
    statement="With OS+, quantization to 8 and to 6 bits is nearly lossless.",
    measured="Damage (loss; of an encoder distance) of the model tamed by OS+ with weights and inputs of 8 and of 6 bits, in every such scheme that "
    "was measured.",
    rule="Supported when 8 and 6 bits were both measured and the whole 95 % interval of every change lies below 0.02 (perplexity 2 % up); refuted "
    "when one lies above; else inconclusive.",
    effect_name="largest damage with OS+",
    unit="loss or distance",
    needs=("methods",),
    judge=judge,
)
