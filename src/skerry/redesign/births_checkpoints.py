"""Which checkpoints make a series: folders by the step in their names, or revisions of a repository of the hub.

    runs/a                      a training: its folders checkpoint-500, step_1000, step1000-tokens4B, ... (also in checkpoints/)
    runs/a runs/b               two trainings, e.g. seeds
    a/step-10 a/step-20         one training, checkpoint by checkpoint
    org/name + step0, step512   revisions of one repository

Everything is looked at before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from skerry.anatomy.checkpoint import has_tokenizer, read_config
from skerry.anatomy.find import find
from skerry.errors import BadTokens, UnknownModel, UsageError

_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter|iteration|update)[=_-]?(\d+)(k(?![a-z]))?", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)$")
# Where a checkpoint keeps the model when it keeps the state of the optimizer, too; where a training keeps its checkpoints.
_INSIDE, _BELOW = ("", "model"), ("", "checkpoints")


class Checkpoint(NamedTuple):
    """One state of a training.

    Attributes:
        step: Optimizer steps done.
        place: Folder, or hub id.
        revision: Of a hub id.
    """

    step: int
    place: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.revision or Path(self.place).name


class Series(NamedTuple):
    """One training.

    Attributes:
        name: What the report calls it.
        checkpoints: By step, ascending; at least two.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]


def find_series(places: Sequence[str | Path], revisions: Sequence[str] = ()) -> list[Series]:
    """The trainings that were named.

    Args:
        places: Folders of trainings, or checkpoints of one training, or one hub id.
        revisions: Of the hub id.

    Raises:
        UnknownModel: Nothing there, or no checkpoint in it.
        UsageError: Two checkpoints of one step, a single one, or trainings and checkpoints together.
    """
    if not places:
        raise UsageError(
            "no checkpoints are named; give the folder of a training, several checkpoints, or a hub id with --revisions"
        )
    if revisions:
        return [_hub(places, revisions)]
    alone = [p for p in places if _step_folder(Path(p)) and not _inside(Path(p))]
    if alone and len(alone) < len(places):
        other = next(p for p in places if p not in alone)
        raise UsageError(
            f"{alone[0]} is a checkpoint and {other} is not; name trainings, or checkpoints of one training"
        )
    if alone:
        found = [_checkpoint(Path(p)) for p in alone]
        name = Path(alone[0]).resolve().parent.name
        return [_series(name, found)]
    every = [_series(Path(p).resolve().name, _training(p)) for p in places]
    return _told_apart(every, places)


def check_vocabularies(series: Sequence[Series]) -> None:
    """Refuse a series whose checkpoints read different token ids.

    Raises:
        BadTokens: The sizes of two vocabularies differ.
        SkerryError: A configuration cannot be read.
    """
    for one in series:
        sizes = [(c, _vocabulary(c)) for c in one.checkpoints]
        known = [(c, size) for c, size in sizes if size is not None]
        for checkpoint, size in known:
            if size != known[0][1]:
                raise BadTokens(
                    f"{checkpoint} of {one.name} has a vocabulary of {size:,} and {known[0][0]} one of {known[0][1]:,}: "
                    "they cannot read the same text; name checkpoints of one training"
                )


def tokenizer_place(series: Series) -> Path | None:
    """Where the tokenizer lies when the checkpoints bring none: up to two folders above; None when they do or nothing is there."""
    first = Path(series.checkpoints[0].place)
    if series.checkpoints[0].revision is not None or has_tokenizer(first):
        return None
    return next((p for p in list(first.resolve().parents)[:3] if has_tokenizer(p)), None)


def step_of(name: str) -> int | None:
    """The step that a name tells; None without one.

    >>> [step_of(n) for n in ("checkpoint-500", "stage1-step1000-tokens4B", "step_20k", "global_step7", "final")]
    [500, 1000, 20000, 7, None]
    """
    if found := _STEP.search(name):
        return int(found[1]) * (1000 if found[2] else 1)
    number = _NUMBER.search(name)
    return int(number[1]) if number else None


def _hub(places: Sequence[str | Path], revisions: Sequence[str]) -> Series:
    if len(places) > 1 or Path(places[0]).exists():
        raise UsageError(
            f"revisions belong to one repository of the hub, not to {', '.join(str(p) for p in places[:3])}; "
            "leave --revisions out for folders"
        )
    found = []
    for revision in revisions:
        step = step_of(revision)
        if step is None:
            raise UsageError(
                f"revision {revision!r} tells no step; expected a name like step1000 or step1000-tokens4B"
            )
        found.append(Checkpoint(step, str(places[0]), revision))
    return _series(str(places[0]), found)


def _training(place: str | Path) -> list[Checkpoint]:
    folder = Path(place)
    if not folder.is_dir():
        hint = "" if folder.suffix or str(place).count("/") != 1 else "; for a hub id give --revisions"
        raise UnknownModel(f"there is no folder {place}{hint}")
    found = [_checkpoint(child) for child in _inside(folder)]
    if not found:
        lone = (folder / "config.json").is_file()
        what = "is one model and tells no step" if lone else "holds no checkpoint"
        raise UnknownModel(
            f"{place} {what}: expected folders like checkpoint-500 or step1000, each with a config.json"
        )
    return found


def _inside(folder: Path) -> list[Path]:
    return list(_children(folder)) if folder.is_dir() else []


def _children(folder: Path) -> Iterator[Path]:
    for below in _BELOW:
        at = folder / below
        if at.is_dir():
            yield from (p for p in sorted(at.iterdir()) if p.is_dir() and _step_folder(p))


def _step_folder(folder: Path) -> bool:
    return step_of(folder.name) is not None and _model_folder(folder) is not None


def _model_folder(folder: Path) -> Path | None:
    return next((folder / name for name in _INSIDE if (folder / name / "config.json").is_file()), None)


def _checkpoint(folder: Path) -> Checkpoint:
    step, place = step_of(folder.resolve().name), _model_folder(folder)
    assert step is not None and place is not None
    return Checkpoint(step, str(place))


def _series(name: str, found: list[Checkpoint]) -> Series:
    ordered = sorted(found, key=lambda checkpoint: checkpoint.step)
    for a, b in pairwise(ordered):
        if a.step == b.step:
            raise UsageError(
                f"two checkpoints of {name} are of step {a.step:,}: {a.revision or a.place} and {b.revision or b.place}; "
                "name the ones to read"
            )
    if len(ordered) < 2:
        raise UsageError(
            f"{name} has one checkpoint, {ordered[0]}: a series needs at least two; `skerry scan` reads one model"
        )
    return Series(name, tuple(ordered))


def _told_apart(series: list[Series], places: Sequence[str | Path]) -> list[Series]:
    """Names that differ: of folders of the same name, with the folder above."""
    names = [s.name for s in series]
    if len(set(names)) == len(names):
        return series
    longer = ["/".join(Path(p).resolve().parts[-2:]) for p in places]
    if len(set(longer)) < len(longer):
        raise UsageError(f"a training is named twice: {', '.join(str(p) for p in places)}")
    return [s._replace(name=name) for s, name in zip(series, longer, strict=True)]


def _vocabulary(checkpoint: Checkpoint) -> int | None:
    found = find(
        checkpoint.place if checkpoint.revision else Path(checkpoint.place), revision=checkpoint.revision
    )
    config: dict[str, Any] = read_config(found.path / "config.json")
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None
