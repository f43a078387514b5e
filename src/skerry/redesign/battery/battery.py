"""The functional battery: does a model without outliers lose something? Any decoder, the same inputs for all that share a tokenizer.

found = run_battery(model, tokenizer)
found.score("retrieval", "accuracy").interval
compare(found, run_battery(other, tokenizer))
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from skerry.anatomy.quiet import check_weights, quiet
from skerry.errors import BrokenModel, UnknownOption, near_matches
from skerry.redesign.battery import calibration, induction, labels, linear, recall, repetition, retrieval
from skerry.redesign.battery.compare import Difference, compare_scores
from skerry.redesign.battery.material import MOST_TOKENS, Material, make_material
from skerry.redesign.battery.score import Place, Score
from skerry.redesign.battery.subject import Subject, subject_of
from skerry.redesign.battery.task import NotApplicable, Outcome, Task
from skerry.run import Progress

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        induction.TASK,
        retrieval.TASK,
        labels.TASK,
        linear.TASK,
        recall.TASK,
        calibration.TASK,
        repetition.TASK,
    )
}


@dataclass(frozen=True)
class Battery:
    """What one model gave.

    Attributes:
        name: The model.
        num_parameters: Of it; shared ones count once.
        vocab: Tokens that it predicts.
        training_length: Tokens that it was trained on at once.
        text: What text was read, in words.
        seed: Of inputs, samples and intervals.
        scores: All numbers.
        skipped: Task to the reason why it does not apply.
        notes: What a reader must know, one line each.
        tables: Other rows by name: `best_head`, `heads`, `solvable`, `texts`.
        seconds: Per task.
    """

    name: str
    num_parameters: int
    vocab: int
    training_length: int
    text: str
    seed: int
    scores: tuple[Score, ...]
    skipped: dict[str, str]
    notes: tuple[str, ...]
    tables: dict[str, list[dict[str, Any]]]
    seconds: dict[str, float]

    @property
    def headline(self) -> tuple[Score, ...]:
        """The whole numbers, without those along a curve."""
        return tuple(score for score in self.scores if score.place is None)

    def score(self, task: str, measure: str, place: Place | None = None) -> Score:
        """One number.

        Raises:
            UnknownOption: There is none of that name.
        """
        found = next((s for s in self.scores if s.key == (task, measure, place)), None)
        if found is None:
            known = [f"{s.task}.{s.measure}" for s in self.headline]
            near = near_matches(f"{task}.{measure}", known)
            hint = f"; did you mean {near}?" if near else f"; there are {', '.join(known)}"
            raise UnknownOption(f"no score {task}.{measure}{f' at {place}' if place else ''}{hint}")
        return found

    def curve(self, task: str, measure: str) -> list[Score]:
        """The same along its curve."""
        return [s for s in self.scores if s.key[:2] == (task, measure) and s.place is not None]

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = "name num_parameters vocab training_length text seed skipped tables seconds"
        own = {name: getattr(self, name) for name in names.split()}
        return {**own, "notes": list(self.notes), "scores": [s.document() for s in self.scores]}

    @classmethod
    def from_document(cls, d: Mapping[str, Any]) -> Battery:
        """The battery that wrote a document."""
        scores = tuple(map(Score.from_document, d["scores"]))
        rest = {k: v for k, v in d.items() if k in cls.__dataclass_fields__ and k not in ("scores", "notes")}
        return cls(scores=scores, notes=tuple(d["notes"]), **rest)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} tasks not applicable" if self.skipped else ""
        return f"<Battery of {self.name}: {len(self.headline)} scores{skipped}; .score(task, measure), compare(a, b)>"


def check_tasks(names: Iterable[str] | None) -> list[Task]:
    """The tasks of these names in the order of the battery; all by default.

    Raises:
        UnknownOption: No task of a name, or no name.
    """
    wanted = list(TASKS) if names is None else list(names)
    for name in wanted:
        if name not in TASKS:
            near = near_matches(name, list(TASKS))
            raise UnknownOption(
                f"no task {name!r}; {f'did you mean {near}? ' if near else ''}there are {', '.join(TASKS)}"
            )
    if not wanted:
        raise UnknownOption(f"no task was named; there are {', '.join(TASKS)}")
    return [task for name, task in TASKS.items() if name in wanted]


def run_battery(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    text: Any = None,
    held_out: float | None = None,
    tasks: Iterable[str] | None = None,
    inputs: int = 64,
    training_length: int | None = None,
    stretch: int = 4,
    longest: int = MOST_TOKENS,
    batch_size: int | None = None,
    seed: int = 0,
    bos: str = "auto",
    name: str | None = None,
    progress: Progress | None = None,
) -> Battery:
    """Put a decoder through the tasks. Its mode and the state of all random numbers are afterwards as before.

    Args:
        model: Gives `.logits` [sample position token] for `input_ids`; on its own device, in its own dtype.
        tokenizer: Of the model; None draws random ids, and the tasks that need text are left out unless `text` holds ids.
        text: A corpus, a path or text; or token ids `[sample position]`, or one stream of them; the built-in corpus by default.
        held_out: Read only this share of the text, at its end: what a training has left out.
        tasks: Names of `TASKS`; all by default.
        inputs: Inputs per task.
        training_length: Tokens that the model was trained on at once; what its configuration says by default.
        stretch: Read text of so many training lengths, where the model can.
        longest: But at most so many tokens.
        batch_size: Most inputs per forward; as many as fit by default.
        seed: Of inputs, samples and intervals.
        bos: `auto`, `with` or `without` a beginning-of-sequence token.
        name: What to call the model.
        progress: Told how far it is.

    Raises:
        NotPossible: The model is no decoder.
        UnknownOption: A task or a number that cannot be meant.
        BadTokens: Ids that the model does not know.
        BadText: Less text than one window.
        BrokenModel: Its logits are not finite.
    """
    wanted = check_tasks(tasks)
    if next(model.parameters(), None) is not None:
        check_weights(model)
    with quiet(model):
        subject = subject_of(model, length=training_length, batch_size=batch_size)
        material = make_material(
            subject,
            tokenizer,
            text=text,
            held_out=held_out,
            inputs=inputs,
            stretch=stretch,
            longest=longest,
            seed=seed,
            bos=bos,
        )
        return _run(subject, material, wanted, name or type(model).__name__, progress)


def _run(
    subject: Subject, material: Material, tasks: Sequence[Task], name: str, progress: Progress | None
) -> Battery:
    scores: list[Score] = []
    skipped: dict[str, str] = {}
    notes = list(subject.facts)
    tables: dict[str, list[dict[str, Any]]] = {}
    seconds: dict[str, float] = {}
    if progress is not None:
        progress.start(f"battery of {name}", len(tasks), "task")
    for task in tasks:
        began = time.perf_counter()
        try:
            found = task.run(subject, material)
        except NotApplicable as why:
            skipped[task.name] = str(why)
        else:
            _check_finite(found, name)
            scores += found.scores
            notes += found.notes
            tables |= found.tables
        seconds[task.name] = time.perf_counter() - began
        if progress is not None:
            progress.advance()
    if progress is not None:
        progress.done()
    return Battery(
        name=name,
        num_parameters=sum(p.numel() for p in subject.model.parameters()),
        vocab=subject.vocab,
        training_length=subject.length,
        text=material.text_is,
        seed=material.seed,
        scores=tuple(scores),
        skipped=skipped,
        notes=tuple(dict.fromkeys(notes)),
        tables=tables,
        seconds=seconds,
    )


def _check_finite(found: Outcome, name: str) -> None:
    for score in found.scores:
        if score.place is None and score.value != score.value:
            raise BrokenModel(
                f"{name}: {score.task}.{score.measure} is not a number; its logits hold NaN: look at its weights, or use another dtype"
            )


def compare(a: Battery, b: Battery) -> list[Difference]:
    """What model b gives beside model a, score by score, in pairs where both have read the same inputs."""
    return compare_scores(a.scores, b.scores)
