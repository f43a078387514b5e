"""skerry watch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document, progress_of


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """How checkpoints are read."""

    text: str | None = None
    """What every checkpoint reads: a file, a folder, a JSONL file, `datasets:NAME`; the built-in corpus by default."""
    revisions: str | None = None
    """Revisions of a hub id, separated by commas: step0,step512,step1000."""
    samples: int | None = None
    """Independent inputs to read."""
    tokens: int | None = None
    """Tokens per input."""
    figures: str | None = None
    """Write the pictures as SVG and PNG into this folder."""
    tokenizer: str | None = None
    """Where the tokenizer is, when neither the checkpoints nor the folders above them hold it."""
    dtype: str | None = None
    """fp32, bf16, fp16 or fp64; as stored by default."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; chosen by default."""
    seed: int = 0
    """Chooses the inputs."""
    out: str | None = None
    """Run directory; under ./skerry-runs by default."""
    batch_size: int | None = None
    """Inputs per forward."""
    bos: str = "auto"
    """Beginning-of-sequence token: auto (what the tokenizer does), with, without."""
    threads: int | None = None
    """CPU threads; chosen by model size and load by default."""
    trust_remote_code: Annotated[bool, Parameter(negative=())] = False
    """Run code that the checkpoints ship."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.births`, but the text and the revisions."""
        own = ("text", "revisions", "figures", "json", "quiet")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        from skerry.errors import UnknownOption

        for name in ("samples", "tokens", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnknownOption(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


DEFAULTS = Asked()


def watch(
    *checkpoints: str,
    asked: Asked = DEFAULTS,
) -> None:
    """See outliers being born in a series of checkpoints: when each kind grew, and which came first.

    Parameters
    ----------
    checkpoints
        The folder of a training (or several, e.g. seeds), checkpoints of one training, or a hub id with --revisions.
    asked
        How they are read.
    """
    asked.check()
    if asked.figures is not None:
        from skerry.cli.trace import check_folder

        check_folder(asked.figures)
    with progress_of(asked) as progress:
        import skerry

        done = skerry.births(
            checkpoints,
            asked.text,
            revisions=[r.strip() for r in (asked.revisions or "").split(",") if r.strip()],
            progress=progress,
            **asked.options(),
        )
    if asked.figures is not None:
        done.figures(asked.figures)
    if asked.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.births_terminal import births_terminal

    births_terminal(done.document, console())
