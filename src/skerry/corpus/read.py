"""Where text comes from: a literal string, a file, a folder, JSON lines, a `datasets` name, or the built-in corpus.

    read(None), read("builtin")            the prose of this Python installation
    read("notes.txt"), read("folder")      UTF-8 text; folders recursively, files in the order of their names
    read("lines.jsonl", field="text")      one document per line
    read("datasets:NAME:CONFIG:SPLIT")     a data set of the hub, streamed; read("folder") of `Dataset.save_to_disk` also
    read("A whole sentence, or more ...")  the text itself: five words or more, or a line break

At most 64 million characters are read, from the beginning; the corpus' notes say when that cut something off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from skerry.corpus.builtin import builtin
from skerry.corpus.corpus import Corpus
from skerry.errors import BadText, near_matches

MAX_CHARACTERS = 64_000_000
TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".jsonl", ".ndjson")
_JSON_LINES = (".jsonl", ".ndjson")
_BUILTIN = ("builtin", "python-prose")
# Everything below the space except tab, line feed, form feed, carriage return and escape: text has none, or next to none.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_MARKS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
}


def read(source: str | Path | None = None, *, field: str | None = None) -> Corpus:
    """Read a corpus.

    Args:
        source: What to read, see above.
        field: The field of JSON lines or of a data set that holds the text: `text` or the only one with strings by default.

    Raises:
        BadText: Not found, empty, binary, not UTF-8, or JSON lines that are broken.
        MissingExtra: A data set, and the library `datasets` is not installed.
    """
    if source is None or source in _BUILTIN:
        return builtin()
    if isinstance(source, str) and source.startswith("datasets:"):
        from skerry.corpus.hub import from_datasets

        return from_datasets(source.removeprefix("datasets:"), field=field)
    if isinstance(source, str) and _is_literal(source):
        return from_text(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, field)
    if not path.exists():
        raise BadText(_not_found(path))
    reading = _Reading()
    documents = tuple(reading.take(_documents(path, field)))
    if not documents:
        raise BadText(f"{path} is empty; name a file with text")
    return Corpus(str(source), documents, reading.notes)


def from_text(text: str, name: str = "text given by the caller") -> Corpus:
    """A corpus of one document.

    Raises:
        BadText: Nothing but white space.
    """
    if not text.strip():
        raise BadText("the text is empty; give some text, or None for the built-in corpus")
    return Corpus(name, (_lines(text),))


class _Reading:
    """Takes documents until the limit and remembers what it cut."""

    def __init__(self) -> None:
        self.notes: tuple[str, ...] = ()
        self._room = MAX_CHARACTERS

    def take(self, documents: Iterator[str]) -> Iterator[str]:
        for document in documents:
            if not document.strip():
                continue
            if len(document) > self._room:
                self.notes = (f"only the first {MAX_CHARACTERS:,} characters are read",)
                if self._room:
                    yield document[: self._room]
                self._room = 0
                return
            self._room -= len(document)
            yield document


def _is_literal(source: str) -> bool:
    """Whether a string is the text itself: it has a line break or five words, and no file has that name."""
    if "\n" in source or len(source) > 1000:
        return True
    if len(source.split()) < 5 or Path(source).suffix.lower() in TEXT_SUFFIXES:
        return False
    return not Path(source).expanduser().exists()


def _not_found(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"no text {str(path)!r}: there is no folder {str(parent)!r}"
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    near = near_matches(path.name, names)
    hint = (
        f"did you mean {near}?"
        if near
        else "a text file, a folder, JSON lines, datasets:NAME or builtin is expected"
    )
    return f"no text {str(path)!r}: {hint}"


def _folder(folder: Path, field: str | None) -> Corpus:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        from skerry.corpus.hub import from_disk

        return from_disk(folder, field=field)
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in TEXT_SUFFIXES and p.is_file() and not _hidden(p, folder)
    )
    if not files:
        others = sorted({p.suffix or p.name for p in folder.rglob("*") if p.is_file()})[:5]
        there = f"it has {', '.join(others)}" if others else "it is empty"
        raise BadText(f"{folder} holds no text files ({', '.join(TEXT_SUFFIXES)}): {there}")
    reading = _Reading()
    documents = tuple(reading.take(d for path in files for d in _documents(path, field)))
    if not documents:
        raise BadText(f"the {len(files)} text files in {folder} are all empty")
    return Corpus(f"{folder} ({len(files):,} files)", documents, reading.notes)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _documents(path: Path, field: str | None) -> Iterator[str]:
    if path.suffix.lower() in _JSON_LINES:
        yield from _json_lines(path, field)
    else:
        yield _decoded(path)


def _decoded(path: Path) -> str:
    """The text of a file.

    Raises:
        BadText: Binary, not UTF-8, or not readable.
    """
    raw = _bytes(path)
    for mark, kind in _MARKS.items():
        if raw.startswith(mark):
            raise BadText(
                f"{path} is {kind}, not text; {'save it as UTF-8' if kind == 'UTF-16' else 'unpack or convert it to UTF-8 text'}"
            )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end == len(raw) == 4 * MAX_CHARACTERS:  # our own cut went through a character
            text = raw[: error.start].decode("utf-8")
        elif b"\0" in raw[:4096]:
            raise BadText(
                f"{path} is binary: byte 0 at offset {raw.index(0):,}; a UTF-8 text file is expected"
            ) from None
        else:
            line = raw.count(b"\n", 0, error.start) + 1
            raise BadText(
                f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start:,} (line {line:,}); "
                "convert it, for example with iconv -t utf-8"
            ) from error
    _check_control(text, path)
    return _lines(text)


def _check_control(text: str, path: Path) -> None:
    if "\0" in text:
        raise BadText(
            f"{path} is binary: byte 0 at offset {len(text[: text.index(chr(0))].encode()):,}; a UTF-8 text file is expected"
        )
    head = text[:1_000_000]
    count = len(_CONTROL.findall(head))
    if count > 0.002 * len(head):
        raise BadText(
            f"{path} is binary: {count:,} control characters in its first {len(head):,}; a UTF-8 text file is expected"
        )


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4 * MAX_CHARACTERS)
    except OSError as error:
        raise BadText(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _json_lines(path: Path, field: str | None) -> Iterator[str]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = getattr(error, "msg", "nested too deeply")
            raise BadText(
                f"{path}, line {number:,}: not JSON ({what}, column {getattr(error, 'colno', 1)})"
            ) from error
        if isinstance(record, str):
            yield record
            continue
        if not isinstance(record, dict):
            raise BadText(
                f"{path}, line {number:,}: a {type(record).__name__}; every line must be an object with a text field"
            )
        field = field or text_field(record, f"{path}, line {number:,}")
        value = record.get(field)
        if not isinstance(value, str):
            there = (
                f"it holds a {type(value).__name__}"
                if field in record
                else f"it has {', '.join(map(repr, record)) or 'no field'}"
            )
            raise BadText(f"{path}, line {number:,}: no text in field {field!r}; {there}")
        yield value


def text_field(record: dict[str, object], place: str) -> str:
    """The field that holds the text: `text`, or the only one with a string.

    Raises:
        BadText: None or several.
    """
    if isinstance(record.get("text"), str):
        return "text"
    strings = [name for name, value in record.items() if isinstance(value, str)]
    if len(strings) == 1:
        return strings[0]
    if not strings:
        raise BadText(f"{place}: no field with text; it has {', '.join(map(repr, record)) or 'no field'}")
    raise BadText(
        f"{place}: several fields with text ({', '.join(map(repr, strings))}); name one with field="
    )
