"""What claims about trainings read of a study: each label beside the baseline of the same seeds, in the largest size that was trained."""

from __future__ import annotations

import math
from collections.abc import Iterable

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Figure, NotApplicable
from skerry.claims.evidence import Evidence, Row

BASELINE = "softmax"
FREE = (
    "scaled",
    "scaled-1",
    "kv-bias",
    "key-bias",
    "sink-logit",
    "off-by-one",
    "sigmoid",
    "sigmoid-length",
    "softpick",
    "relu",
)
"""Variants in which a head can take back its weight: a scale, a sink in the softmax, or weights that need not sum to one."""
BIASES = ("value-bias", "context-bias")
"""Variants that give a bias and leave the sum at one."""
OPTIMISERS = ("sgd", "muon", "soap", "orthoadam", "lion", "adam-eps")
HAS_OUTLIERS = 20.0
"""Largest over median of the stream that a baseline must reach: below, there is nothing that a variant could remove."""
HALF = 0.5


class Study:
    """The table `study_quantities`, asked for one number at a time.

    Raises:
        NotApplicable: No baseline was trained, or it grew no outliers.
    """

    def __init__(self, evidence: Evidence) -> None:
        arms = [a for a in evidence.rows("study_arms") if a["loss"] is not None]
        if not any(a["label"] == BASELINE for a in arms):
            raise NotApplicable(f"the study has no finished training of the baseline {BASELINE!r}")
        self.size = max(arms, key=lambda a: a["parameters"])["size"]
        rows = [r for r in evidence.rows("study_quantities") if r["size"] == self.size]
        self._rows = {(r["label"], r["quantity"]): r for r in rows}
        self.labels = tuple(dict.fromkeys(r["label"] for r in rows))
        self.num_seeds = len({a["seed"] for a in arms if a["size"] == self.size})
        peak = self.value(BASELINE, "max_to_median").value
        if not peak >= HAS_OUTLIERS:
            raise NotApplicable(
                f"the baseline grew no outliers that could be missed: largest / median of the stream is {peak:.3g}, below {HAS_OUTLIERS:g}"
            )

    def among(self, names: Iterable[str]) -> list[str]:
        """The trained labels that are these variants, with options or without.

        Raises:
            NotApplicable: None of them.
        """
        names = tuple(names)
        found = [label for label in self.labels if label.split(":")[0] in names]
        if not found:
            raise NotApplicable(f"the study trained none of {', '.join(names)}; name some with --variants")
        return found

    def value(self, label: str, quantity: str) -> Interval:
        """A number of a label; NaN where there is none."""
        return _interval(self._rows.get((label, quantity)), ("value", "ci_low", "ci_high"))

    def versus(self, label: str, quantity: str) -> Interval:
        """The same beside the baseline: a difference, or a ratio for sizes; NaN where there is none."""
        return _interval(self._rows.get((label, quantity)), ("versus", "versus_low", "versus_high"))

    def figure(self, quantity: str, labels: Iterable[str], title: str, unit: str) -> Figure:
        """A quantity beside the baseline, label by label."""
        found = [(label, self.versus(label, quantity)) for label in labels]
        return Figure(
            kind="interval",
            x=tuple(label for label, _ in found),
            y=tuple(_known(i.value) for _, i in found),
            low=tuple(_known(i.low) for _, i in found),
            high=tuple(_known(i.high) for _, i in found),
            title=title,
            x_title="attention",
            y_title=unit,
        )


def _interval(row: Row | None, names: tuple[str, str, str]) -> Interval:
    return Interval(*(math.nan if row is None or row[n] is None else float(row[n]) for n in names))


def _known(x: float) -> float | None:
    return x if math.isfinite(x) else None
