"""How long work says how far it is; the command line draws it, the library does not print."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """A listener of long work."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage of `total` units begins."""

    def advance(self, amount: int = 1) -> None:
        """So many units more are done."""

    def note(self, text: str) -> None:
        """Something that the user should know now."""

    def done(self) -> None:
        """The stage is over."""


class Silent:
    """Listens to nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int = 1) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def done(self) -> None:
        """Nothing."""
