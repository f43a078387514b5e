"""Decisions that the program takes for the user, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A value the program chose, and why; both are printed and stored in the run."""

    value: T
    why: str

    def __str__(self) -> str:
        return f"{self.value} ({self.why})"
