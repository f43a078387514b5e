"""skerry battery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document, progress_of


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
    seed: int = 0
    """Of inputs, samples and intervals."""
    bos: str = "auto"
    """Beginning-of-sequence token: auto (what the tokenizer does), with, without."""
    tokenizer: str | None = None
    """For models that bring none."""
    dtype: str | None = None
    """fp32, bf16, fp16 or fp64; as stored by default."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; chosen by default."""
    batch_size: int | None = None
    """Most inputs per forward; as many as fit by default."""
    threads: int | None = None
    """CPU threads; chosen by model size and load by default."""
    trust_remote_code: Annotated[bool, Parameter(negative=())] = False
    """Run code that a checkpoint ships."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `run_batteries`."""
        names = """text held_out inputs training_length stretch seed bos tokenizer dtype device batch_size threads
            trust_remote_code"""
        return {**{name: getattr(self, name) for name in names.split()}, "tasks": self.tasks or None}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        from skerry.errors import UnknownOption

        for name, least in {
            "inputs": 2,
            "training_length": 2,
            "stretch": 1,
            "batch_size": 1,
            "threads": 1,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UnknownOption(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
        if self.held_out is not None and not 0 < self.held_out <= 1:
            raise UnknownOption(f"--held-out is {self.held_out}; it is a share, above 0 and at most 1")


DEFAULTS = Asked()


def battery(*models: str, asked: Asked = DEFAULTS) -> None:
    """Does a model without outliers lose something? Seven tasks for any decoder; several models are compared with the first.

    Parameters
    ----------
    models
        Folders, hub ids or .gguf files of decoders.
    asked
        What to do.
    """
    asked.check()
    with progress_of(asked) as progress:
        from skerry.redesign.battery.several import document, run_batteries

        found = document(run_batteries(models, progress=progress, **asked.options()))
    if asked.json:
        ask_document(found)
        return
    from skerry.cli.console import console
    from skerry.report.battery_terminal import battery_terminal

    battery_terminal(found, console())
