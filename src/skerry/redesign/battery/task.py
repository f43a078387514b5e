"""What a task of the battery is: a name, what it asks, whose it is, and a function from a model and inputs to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from skerry.redesign.battery.material import Material
from skerry.redesign.battery.score import Score
from skerry.redesign.battery.subject import Subject


class NotApplicable(Exception):
    """This model, or what it was given to read, does not allow the task; the message says why."""


@dataclass
class Outcome:
    """What a task found.

    Attributes:
        scores: Its numbers, the whole ones before those along a curve.
        notes: What a reader must know, one line each.
        tables: Other rows by name, plain values.
    """

    scores: list[Score]
    notes: list[str] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One question to a model.

    Attributes:
        name: One word.
        what: The question.
        source: Who asked it first.
        run: Answers it.

    Raises:
        NotApplicable: By `run`, where the task has no meaning for the model.
    """

    name: str
    what: str
    source: str
    run: Callable[[Subject, Material], Outcome]
