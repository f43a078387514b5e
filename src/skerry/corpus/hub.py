"""Data sets of the library `datasets`: from the hub, streamed so that only what is read is fetched, or from a folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from skerry.anatomy.find import reachable
from skerry.anatomy.hush import hushed
from skerry.corpus.corpus import Corpus
from skerry.errors import BadText, MissingExtra

MAX_STREAMED = 8_000_000
"""Characters fetched from a data set: two million tokens or so."""


def from_datasets(reference: str, *, field: str | None = None) -> Corpus:
    """The first eight million characters of `NAME[:CONFIG[:SPLIT]]`; the split is `train` or the first one.

    Raises:
        MissingExtra: The library is not installed.
        BadText: No such data set, configuration or split, or no text in it.
    """
    datasets = _library()
    name, config, split = [*reference.split(":"), "", ""][:3]
    if not name:
        raise BadText(
            "datasets: without a name; write datasets:NAME, datasets:NAME:CONFIG or datasets:NAME:CONFIG:SPLIT"
        )
    try:
        with _no_waiting(datasets, name), hushed():
            loaded = datasets.load_dataset(name, config or None, split=split or None, streaming=True)
            return _corpus(f"datasets:{reference}", *_one_split(loaded), field)
    except BadText:
        raise
    except Exception as error:  # the library raises whatever its servers, parsers and file systems raise
        raise BadText(f"data set {reference!r} cannot be read: {_first_line(error)}") from error


def from_disk(folder: Path, *, field: str | None = None) -> Corpus:
    """The first eight million characters of a folder that `save_to_disk` wrote.

    Raises:
        MissingExtra: The library is not installed.
        BadText: The folder is damaged, or no text in it.
    """
    datasets = _library(folder)
    try:
        with hushed():
            return _corpus(str(folder), *_one_split(datasets.load_from_disk(str(folder))), field)
    except BadText:
        raise
    except Exception as error:
        raise BadText(f"data set in {folder} cannot be read: {_first_line(error)}") from error


def _library(folder: Path | None = None) -> Any:
    if importlib.util.find_spec("datasets") is None:
        what = (
            f"{folder} is a folder of the library `datasets`"
            if folder
            else "a datasets: name needs the library `datasets`"
        )
        raise MissingExtra(f'{what}, which is not installed: pip install "skerry[datasets]"')
    import datasets

    return datasets


@contextmanager
def _no_waiting(datasets: Any, name: str) -> Iterator[None]:
    """Without a network the library asks for half a minute before it looks into its cache; while this is open it looks at once."""
    from huggingface_hub import constants

    holders: list[Any] = [
        h for h in (constants, getattr(datasets, "config", None)) if hasattr(h, "HF_HUB_OFFLINE")
    ]
    before = [(holder, holder.HF_HUB_OFFLINE) for holder in holders]
    if not Path(name).exists() and not reachable():
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in before:
            holder.HF_HUB_OFFLINE = value


def _one_split(loaded: Any) -> tuple[Iterable[Mapping[str, Any]], str | None]:
    """The rows and, when we chose it, the name of the split."""
    if not isinstance(loaded, Mapping):
        return loaded, None
    split = "train" if "train" in loaded else next(iter(loaded))
    return loaded[split], split


def _corpus(name: str, rows: Iterable[Mapping[str, Any]], split: str | None, field: str | None) -> Corpus:
    from skerry.corpus.read import text_field

    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise BadText(f"{name} is empty")
    chosen = field or text_field(dict(first), f"{name}, row 0")
    notes = [f"split {split!r}"] if split else []
    documents = tuple(_texts(name, chain([first], iterator), chosen, notes))
    if not documents:
        raise BadText(f"{name}: field {chosen!r} is empty in every row")
    return Corpus(name, documents, tuple(notes))


def _texts(name: str, rows: Iterable[Mapping[str, Any]], field: str, notes: list[str]) -> Iterator[str]:
    room = MAX_STREAMED
    for number, row in enumerate(rows):
        value = row.get(field)
        if not isinstance(value, str):
            there = (
                f"it holds a {type(value).__name__}"
                if field in row
                else f"it has {', '.join(map(repr, row))}"
            )
            raise BadText(f"{name}, row {number:,}: no text in field {field!r}; {there}")
        if value.strip():
            yield value[:room]
            room -= len(value)
        if room <= 0:
            notes.append(f"only the first {MAX_STREAMED:,} characters are read")
            return


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
