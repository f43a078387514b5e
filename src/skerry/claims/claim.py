"""What a claim is: a published statement with the measurement and the decision rule that were fixed before any model was looked at.

A claim is a pure function of what a run has measured. It never loads a model, so a verdict can be asked for again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from skerry.outliers.finding import Record

if TYPE_CHECKING:
    from skerry.causes.bootstrap import Interval
    from skerry.claims.evidence import Evidence

Verdict = Literal["supported", "refuted", "inconclusive", "not applicable"]
FigureKind = Literal["bar", "line", "scatter", "interval"]


class NotApplicable(Exception):
    """The claim has no meaning for this model, or what it needs was not measured; the message says which."""


class Figure(Record):
    """A chart as plain data: row i is at (x[i], y[i]), reaches from low[i] to high[i] and belongs to series[i]."""

    kind: FigureKind
    """bar, line, scatter (points), or interval (points with a range)."""
    x: tuple[str | float, ...]
    """Places on the horizontal axis: words or numbers."""
    y: tuple[float | None, ...]
    """Heights."""
    low: tuple[float | None, ...] | None = None
    """Lower ends of intervals; None without."""
    high: tuple[float | None, ...] | None = None
    """Upper ends of intervals; None without."""
    series: tuple[str, ...] | None = None
    """To which series each row belongs; None for a single one."""
    title: str
    """What is shown."""
    x_title: str
    """What the horizontal axis is."""
    y_title: str
    """What the vertical axis is, with its unit."""


class Result(Record):
    """A claim judged on one run."""

    id: str
    """Identifier: section of the review and a letter."""
    section: str
    """Section of the review."""
    source: str
    """The papers that say it."""
    statement: str
    """The statement, in one sentence."""
    measured: str
    """What is measured to test it."""
    rule: str
    """The decision rule, fixed in advance."""
    verdict: Verdict
    """supported, refuted, inconclusive or not applicable."""
    why: str
    """The numbers that decided, in one or two sentences."""
    effect: float | None = None
    """The number that the rule reads; None where nothing could be measured."""
    effect_name: str
    """What that number is."""
    unit: str
    """Its unit: share, ratio, times, correlation, ..."""
    low: float | None = None
    """Lower end of its 95 % interval."""
    high: float | None = None
    """Upper end of it."""
    figure: Figure | None = None
    """The picture behind it."""
    seconds: float
    """Time that judging took; measuring is in the stages of the run."""


class Judged(NamedTuple):
    """What judging a claim gives.

    Attributes:
        verdict: The verdict.
        why: The numbers that decided, in words.
        effect: The number that the rule reads, with its interval; None where there is none.
        figure: The picture behind it.
    """

    verdict: Verdict
    why: str
    effect: Interval | None = None
    figure: Figure | None = None


@dataclass(frozen=True)
class Claim:
    """One published statement and its test.

    Attributes:
        id: Section of the review and mostly a letter, e.g. `2.2a`.
        section: Section of the review.
        source: The papers that say it, with arXiv number.
        statement: The statement, in one sentence.
        measured: What is measured to test it, in words.
        rule: When it is supported, refuted and inconclusive; fixed in advance.
        effect_name: What the number is that the rule reads.
        unit: Its unit.
        needs: Tables of the run that it reads; it is not applicable to a run without them.
        judge: The test; raises `NotApplicable` with the reason where the claim has no meaning.
    """

    id: str
    section: str
    source: str
    statement: str
    measured: str
    rule: str
    effect_name: str
    unit: str
    needs: tuple[str, ...]
    judge: Callable[[Evidence], Judged]


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a statement of several parts: all must hold; one that fails refutes it."""
    if "refuted" in verdicts:
        return "refuted"
    return "supported" if set(verdicts) == {"supported"} else "inconclusive"
