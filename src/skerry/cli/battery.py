"""skerry battery."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import COMMON, Common, ask_document, check_counts, progress_of


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """What to do."""

    text: str | None = None
    """What the models read: a file, a folder, a JSONL file, `datasets:NAME`; the built-in corpus by default."""
    held_out: float | None = None
    """Read only this share of the text, at its end: what a training has left out, e.g. 0.05."""
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = ()
    """Only these: induction retrieval labels linear recall calibration repetition; all by default."""
    inputs: int = 64
    """Inputs per task; intervals are over inputs."""
    training_length: int | None = None
    """Tokens that the models were trained on at once; what their configuration says by default."""
    stretch: int = 4
    """Read text of so many training lengths, where a model can."""
    tokenizer: str | None = None
    """For models that bring none."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `run_batteries`."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "tasks": self.tasks or None}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        from skerry.errors import UnknownOption

        check_counts(self, inputs=2, training_length=2, stretch=1)
        if self.held_out is not None and not 0 < self.held_out <= 1:
            raise UnknownOption(f"--held-out is {self.held_out}; it is a share, above 0 and at most 1")


DEFAULTS = Asked()


def battery(*models: str, asked: Asked = DEFAULTS, common: Common = COMMON) -> None:
    """Does a model without outliers lose something? Seven tasks for any decoder; several models are compared with the first.

    Parameters
    ----------
    models
        Folders, hub ids or .gguf files of decoders.
    asked
        What to do.
    common
        How the models run.
    """
    asked.check()
    common.check()
    with progress_of(common) as progress:
        from skerry.redesign.battery.several import document, run_batteries

        found = document(run_batteries(models, progress=progress, **asked.options(), **common.options()))
    if common.json:
        ask_document(found)
        return
    from skerry.cli.console import console
    from skerry.report.battery_terminal import battery_terminal

    battery_terminal(found, console())
