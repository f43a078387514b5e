"""skerry watch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from cyclopts import Parameter

from skerry.cli.asking import COMMON, Common, ask_document, check_counts, progress_of


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
    out: str | None = None
    """Run directory; under ./skerry-runs by default."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.births`, but the text and the revisions."""
        own = ("text", "revisions", "figures")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        check_counts(self, samples=1, tokens=1)


DEFAULTS = Asked()


def watch(
    *checkpoints: str,
    asked: Asked = DEFAULTS,
    common: Common = COMMON,
) -> None:
    """See outliers being born in a series of checkpoints: when each kind grew, and which came first.

    Parameters
    ----------
    checkpoints
        The folder of a training (or several, e.g. seeds), checkpoints of one training, or a hub id with --revisions.
    asked
        How they are read.
    common
        How the models run.
    """
    asked.check()
    common.check()
    if asked.figures is not None:
        from skerry.cli.trace import check_folder

        check_folder(asked.figures)
    with progress_of(common) as progress:
        import skerry

        done = skerry.births(
            checkpoints,
            asked.text,
            revisions=[r.strip() for r in (asked.revisions or "").split(",") if r.strip()],
            progress=progress,
            **asked.options(),
            **common.options(),
        )
    if asked.figures is not None:
        done.figures(asked.figures)
    if common.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.births_terminal import births_terminal

    births_terminal(done.document, console())
