"""Progress on stderr: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Bars:
    """Draws a `skerry.run.Progress`."""

    def __init__(self) -> None:
        """Decide by stderr how to draw."""
        self.is_terminal = sys.stderr.isatty()
        self._rich: Any = None
        self._task: Any = None
        self._stage, self._total, self._done = "", 0, 0
        self._began = self._said = 0.0

    def __enter__(self) -> Bars:
        if self.is_terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._rich = Progress(*columns, console=Console(stderr=True), transient=True)
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins."""
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._said = time.monotonic()
        if self._rich is not None:
            if self._task is not None:
                self._rich.remove_task(self._task)
            self._task = self._rich.add_task(stage, total=total)
        elif total > 1:
            self._say(f"{stage}: {total} {unit if total == 1 else plural(unit)}")

    def advance(self, amount: int = 1) -> None:
        """So many units more are done."""
        self._done += amount
        if self._rich is not None:
            self._rich.advance(self._task, amount)
            return
        now = time.monotonic()
        if now - self._said > 10 and self._done:
            left = (now - self._began) / self._done * (self._total - self._done)
            self._say(f"{self._stage}: {self._done} of {self._total}, about {left:.0f} s left")
            self._said = now

    def note(self, text: str) -> None:
        """Something that the user should know now."""
        if self._rich is not None:
            self._rich.console.print(text)
        else:
            self._say(text)

    def done(self) -> None:
        """The stage is over."""

    def _say(self, text: str) -> None:
        print(f"skerry: {text}", file=sys.stderr)


def plural(unit: str) -> str:
    """Batch -> batches, matrix -> matrices."""
    if unit.endswith("ix"):
        return unit[:-2] + "ices"
    return unit + ("es" if unit.endswith(("ch", "s", "x")) else "s")
