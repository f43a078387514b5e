"""What a scan is asked for, with its defaults; the command line and the Python API fill the same object."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from skerry.anatomy.sites import parse_parts
from skerry.errors import UnknownOption, near_matches

DEFAULT_FOLDER = Path("skerry-runs")


@dataclass(frozen=True)
class Options:
    """Options of a scan.

    Attributes:
        samples: Independent inputs; None chooses.
        tokens: Tokens per input; None chooses.
        sites: Parts to measure, words of the vocabulary or beginnings of them; None for all.
        preset: Whose rule decides what is listed.
        dtype: dtype of the forward; None as stored.
        device: Device of the forward; None chooses.
        seed: Chooses the inputs.
        out: Run directory; None for one under ./skerry-runs.
        batch_size: Inputs per forward; None chooses.
        bos: `auto`, `with` or `without` a beginning-of-sequence token.
        threads: CPU threads; None chooses.
        trust_remote_code: Run code that the checkpoint ships.
        attention: Measure attention.
        weights: Measure weights.
        tokenizer: Tokenizer of a model that brings none.
    """

    samples: int | None = None
    tokens: int | None = None
    sites: tuple[str, ...] | None = None
    preset: str = "skerry"
    dtype: Any = None
    device: Any = None
    seed: int = 0
    out: str | Path | None = None
    batch_size: int | None = None
    bos: str = "auto"
    threads: int | None = None
    trust_remote_code: bool = False
    attention: bool = True
    weights: bool = True
    tokenizer: Any = None

    def parts(self) -> list[str] | None:
        """The parts asked for.

        Raises:
            UnknownSite: A word that is no part.
        """
        return None if self.sites is None else parse_parts(self.sites)

    def plain(self) -> dict[str, Any]:
        """What decides the result, as plain values: threads and place decide nothing."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("threads", "out")}

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            UnknownOption: A number below one, or an unknown word.
            UnknownSite: An unknown part.
            UnknownPreset: An unknown preset.
        """
        from skerry.outliers.presets import check_preset

        self.parts()
        check_preset(self.preset)
        for name in ("samples", "tokens", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UnknownOption(
                    f"{name.replace('_', ' ')} is {value!r}; it must be a whole number of at least 1"
                )
        if self.bos not in ("auto", "with", "without"):
            near = near_matches(self.bos, ["auto", "with", "without"])
            raise UnknownOption(
                f"bos is {self.bos!r}; it must be auto, with or without{f'; did you mean {near}?' if near else ''}"
            )


def slug(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
