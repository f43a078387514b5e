"""Options that verbs share, and how they reach the library."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

from cyclopts import Parameter

if TYPE_CHECKING:
    from skerry.run import Progress


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """Options of a scan."""

    text: str | None = None
    """What the model reads: a file, a folder, a JSONL file, `datasets:NAME`; the built-in corpus by default."""
    samples: int | None = None
    """Independent inputs to read."""
    tokens: int | None = None
    """Tokens per input."""
    sites: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = ()
    """Parts to measure, e.g. `resid mlp.down.in`; all by default. `skerry sites` lists them."""
    preset: str = "skerry"
    """Whose rule decides what is listed. `skerry presets` explains them."""
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
    """Run code that the checkpoint ships."""
    attention: bool = True
    """Measure attention."""
    weights: bool = True
    """Measure weights."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.scan` and `skerry.audit`."""
        own = ("text", "sites", "json", "quiet")
        names = [field.name for field in fields(self) if field.name not in own]
        return {**{name: getattr(self, name) for name in names}, "sites": self.sites or None}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        check_counts(self, samples=1, tokens=1, batch_size=1, threads=1)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """How any verb that runs models runs them, and how it answers."""

    dtype: str | None = None
    """dtype of the weights: fp32, bf16, fp16, fp64; as stored by default."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; chosen by default."""
    seed: int = 0
    """Chooses the inputs, their order and samples."""
    batch_size: int | None = None
    """Inputs per forward."""
    bos: str = "auto"
    """Beginning-of-sequence token: auto (what the tokenizer does), with, without."""
    threads: int | None = None
    """CPU threads; chosen by model size and load by default."""
    trust_remote_code: Annotated[bool, Parameter(negative=())] = False
    """Run code that the checkpoint ships."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments that the library's verbs share."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("json", "quiet")}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        check_counts(self, batch_size=1, threads=1)


COMMON = Common()


def check_counts(asked: Any, **least: int) -> None:
    """Refuse a count that is too small; one that is not given is chosen elsewhere.

    Raises:
        UnknownOption: It names the option and its least value.
    """
    from skerry.errors import UnknownOption

    for name, bound in least.items():
        value = getattr(asked, name)
        if value is not None and value < bound:
            raise UnknownOption(f"--{name.replace('_', '-')} is {value}; it must be at least {bound}")


@runtime_checkable
class Quietly(Protocol):
    """Options that say whether anything beside the answer is printed."""

    @property
    def quiet(self) -> bool:
        """Print no progress."""

    @property
    def json(self) -> bool:
        """Print one JSON document and nothing else."""


@contextlib.contextmanager
def progress_of(asked: Quietly) -> Iterator[Progress | None]:
    """A progress display on stderr, or none; libraries are kept from writing on the screen meanwhile."""
    from skerry.cli.progress import Bars

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if asked.quiet or asked.json:
        yield None
        return
    with Bars() as bars:
        yield bars


def ask_document(document: Any) -> None:
    """One JSON document on stdout."""
    import json
    import sys

    json.dump(document, sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
