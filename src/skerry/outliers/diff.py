"""Two runs compared: which findings came, went, moved.

A finding is the same in both when kind, type, site, layer and place (channel, row and column, head and position) are. It has changed
when its value moves by more than a quarter, or its recurrence by more than 0.1: less is what another sample of text does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skerry.errors import BrokenRun
from skerry.outliers.cost_diff import CostDiff, compare_costs
from skerry.outliers.finding import Finding, Record, Summary

if TYPE_CHECKING:
    from skerry.run import Run

VALUE_TOLERANCE = 0.25
RECURRENCE_TOLERANCE = 0.1


class Change(Record):
    """One finding in both runs."""

    before: Finding
    """As it was."""
    after: Finding
    """As it is."""
    value_ratio: float | None
    """value after / value before; None where it was 0."""
    recurrence_difference: float | None
    """recurrence after - before; None for weights."""


class Moved(Record):
    """The same channel, found in other layers."""

    site: str
    """Part of the vocabulary."""
    type: str
    """Type of the finding."""
    place: str
    """Channel, line or head that moved."""
    before: tuple[int, ...]
    """Layers in the first run."""
    after: tuple[int, ...]
    """Layers in the second run."""


class Diff(Record):
    """What differs between two runs."""

    before: str
    """First run."""
    after: str
    """Second run."""
    came: tuple[Finding, ...]
    """Findings of the second run that the first does not have."""
    went: tuple[Finding, ...]
    """Findings of the first run that the second does not have."""
    changed: tuple[Change, ...]
    """In both, with another value or recurrence."""
    moved: tuple[Moved, ...]
    """Places found in both runs, in other layers."""
    same: int
    """Findings that are the same in both."""
    warnings: tuple[str, ...]
    """Why the two may not be comparable."""
    costs: CostDiff | None = None
    """What differs in costs and taming; None where not both runs measured any."""

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {"schema": 1, **self.model_dump(mode="json")}


def compare_runs(before: Run, after: Run) -> Diff:
    """Compare two runs: their findings where both hold a scan, their costs and their taming where both hold some.

    Raises:
        BrokenRun: There is nothing that both hold.
    """
    costs = compare_costs(before, after)
    without = [run for run in (before, after) if not run.has("summary.json")]
    if not without:
        summaries = (Summary.model_validate(run.summary_document()) for run in (before, after))
        return compare(*summaries).model_copy(update={"costs": costs})
    if costs is None:
        raise BrokenRun(
            f"{without[0].path} holds no finished scan, and the two runs share no table of costs or taming: there is nothing to compare"
        )
    warnings = [f"{run.path} holds no scan: findings are not compared" for run in without]
    models = [run.record.request.get("model") for run in (before, after)]
    if models[0] != models[1]:
        warnings.append(f"model differs: {models[0]} before, {models[1]} after")
    return Diff(
        before=str(before.path),
        after=str(after.path),
        came=(),
        went=(),
        changed=(),
        moved=(),
        same=0,
        warnings=tuple(warnings),
        costs=costs,
    )


def compare(before: Summary, after: Summary) -> Diff:
    """Compare two answers."""
    old = {_identity(f): f for f in before.findings}
    new = {_identity(f): f for f in after.findings}
    both = [(old[key], new[key]) for key in old if key in new]
    changed = [change for a, b in both if (change := _change(a, b)) is not None]
    return Diff(
        before=before.run,
        after=after.run,
        came=tuple(f for key, f in new.items() if key not in old),
        went=tuple(f for key, f in old.items() if key not in new),
        changed=tuple(changed),
        moved=_moved(before.findings, after.findings),
        same=len(both) - len(changed),
        warnings=tuple(_warnings(before, after)),
    )


def _place(f: Finding) -> tuple[Any, ...]:
    return (f.channel, f.row, f.column, f.head, f.position, f.token_id)


def _identity(f: Finding) -> tuple[Any, ...]:
    return (f.kind, f.type, f.site, f.layer, f.expert, *_place(f))


def _change(a: Finding, b: Finding) -> Change | None:
    ratio = b.value / a.value if a.value else None
    difference = None
    if a.recurrence is not None and b.recurrence is not None:
        difference = b.recurrence - a.recurrence
    grew = ratio is None or not (1 / (1 + VALUE_TOLERANCE) <= ratio <= 1 + VALUE_TOLERANCE)
    if not grew and (difference is None or abs(difference) <= RECURRENCE_TOLERANCE):
        return None
    return Change(before=a, after=b, value_ratio=ratio, recurrence_difference=difference)


def _moved(before: tuple[Finding, ...], after: tuple[Finding, ...]) -> tuple[Moved, ...]:
    def layers(findings: tuple[Finding, ...]) -> dict[tuple[Any, ...], set[int]]:
        found: dict[tuple[Any, ...], set[int]] = {}
        for f in findings:
            if f.layer is not None and f.kind != "attention":
                found.setdefault((f.site, f.type, f.expert, *_place(f)), set()).add(f.layer)
        return found

    old, new = layers(before), layers(after)
    moved = []
    for key in sorted(old.keys() & new.keys(), key=str):
        if old[key] != new[key]:
            words = ("channel", "row", "column", "head", "position", "token")
            place = ", ".join(f"{w} {v}" for w, v in zip(words, key[3:], strict=True) if v is not None)
            moved.append(
                Moved(
                    site=key[0],
                    type=key[1],
                    place=place,
                    before=tuple(sorted(old[key])),
                    after=tuple(sorted(new[key])),
                )
            )
    return tuple(moved)


def _warnings(before: Summary, after: Summary) -> list[str]:
    a, b = before.model, after.model
    facts = {
        "width": (a.hidden_size, b.hidden_size),
        "number of layers": (a.num_layers, b.num_layers),
        "corpus": (a.corpus, b.corpus),
        "number of samples": (a.num_samples, b.num_samples),
        "tokens per sample": (a.tokens_per_sample, b.tokens_per_sample),
        "beginning of the inputs": (a.bos, b.bos),
        "dtype": (a.dtype, b.dtype),
    }
    return [f"{name} differs: {x} before, {y} after" for name, (x, y) in facts.items() if x != y]
