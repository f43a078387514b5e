"""The built-in corpus: the prose of the Python installation that runs it.

Docstrings and comment blocks of the standard library's source files, cleaned into paragraphs of English; one document per
file, files in the order of their names.  Nothing is downloaded and nothing is shipped, so the text is a property of the
installation: name, length and SHA-256 say which text a run has read, and the same Python gives the same text everywhere.

Left out: tests, character tables, tools that are copies of others (idlelib, lib2to3, distutils), doctest lines, code, tables.
The files are read lexically (strings and comments by one regular expression, 0.3 s); parsing them takes ten times as long,
and the tests compare both.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from skerry.corpus.corpus import Corpus
from skerry.errors import BadText

VERSION = 1
_SKIPPED_FOLDERS = """
    site-packages dist-packages test tests idlelib lib2to3 distutils turtledemo ensurepip encodings pydoc_data
    __pycache__ __phello__ lib-dynload
"""
_SKIPPED = frozenset(_SKIPPED_FOLDERS.split())
_LEXEME = re.compile(
    r"""
    \#(?P<comment>[^\n]*)
  | (?P<prefix>[rRuUbBfFtT]{0,2})
    (?: \"{3}(?P<double>[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*)\"{3}
      | '{3}(?P<single>[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*)'{3}
      | "(?:[^"\\\n]|\\.)*"
      | '(?:[^'\\\n]|\\.)*' )
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_PLAIN_WORD = re.compile(r"(?:^|(?<=[\s(\"'`]))[A-Za-z]+(?:['-][a-z]+)*(?=$|[\s.,;:!?)\"'`])")
_SMALL_WORDS = """
    a an the of to in is are was be it its that this and or not for with if as on by at from which when can will has have
    we you there these than but so no only may must should all any
"""
_GLUE = frozenset(_SMALL_WORDS.split())
_CODE = re.compile(
    r"\\|[=;{}|]{2}|^\s*(?:def|class|import|return|from \w+ import|@\w|[\w.]+\s*=[^=])|\w\(.*\):", re.M
)


def builtin() -> Corpus:
    """The prose of this Python's standard library, from the user's cache when it is there and undamaged.

    Raises:
        BadText: This Python carries no source files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = list(_source_files(root))
    listing = "\n".join(f"{p.relative_to(root).as_posix()} {p.stat().st_size}" for p in sources)
    key = hashlib.sha256(f"{VERSION}\n{listing}".encode()).hexdigest()[:16]
    path = _cache_folder() / f"python-prose-v{VERSION}-{_python().replace(' ', '-')}-{key}.json"
    documents = _cached(path)
    if documents is None:
        documents = [text for p in sources if (text := prose(_source(p)))]
        _keep(path, documents)
    if not documents:
        raise BadText(
            f"the Python in {root} carries no source files, so it has no prose to read; name a text with --text (or data=...)"
        )
    return Corpus(f"python-prose v{VERSION}, {_python()}", tuple(documents))


def prose(source: str) -> str:
    """The paragraphs of English in a Python source file, separated by blank lines, in the order of the file."""
    seen: dict[str, None] = {}
    for text in _texts(source):
        for paragraph in _paragraphs(text):
            seen[paragraph] = None
    return "\n\n".join(seen)


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


def _source_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED and not f.startswith("config-"))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder) / name


def _source(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):  # an unreadable file is one document less; the SHA-256 tells
        return ""


def _texts(source: str) -> Iterator[str]:
    """Docstrings (triple-quoted strings that begin a line) and blocks of whole-line comments, without their marks."""
    block: list[str] = []
    block_end = -1
    for match in _LEXEME.finditer(source):
        start = source.rfind("\n", 0, match.start()) + 1
        if source[
            start : match.start()
        ].strip():  # something stands before it: a value or a remark behind code
            continue
        comment = match["comment"]
        if comment is not None:
            if block and start != block_end + 1:
                yield "\n".join(block)
                block = []
            block.append(comment.lstrip("#!: "))
            block_end = match.end()
            continue
        text = match["double"] or match["single"]
        if text and not set(match["prefix"].lower()) & set("bft"):
            yield inspect.cleandoc(text)
    if block:
        yield "\n".join(block)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines()]
        lines = [line for line in lines if any(c.isalnum() for c in line)]  # separators
        if lines and not any(line.startswith((">>>", "...")) for line in lines):
            joined = " ".join(" ".join(lines).split())
            if _is_prose(joined, lines):
                yield joined


def _is_prose(joined: str, lines: list[str]) -> bool:
    """Sentences: at least eight words, mostly plain ones, held together by the small words of English."""
    words = _WORD.findall(joined)
    if len(words) < 8 or _CODE.search("\n".join(lines)):
        return False
    plain = len(_PLAIN_WORD.findall(joined))
    glue = sum(word.lower() in _GLUE for word in words)
    return plain >= 0.75 * len(joined.split()) and glue >= 0.15 * len(words)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "skerry" / "corpus"


def _digest(documents: list[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()


def _cached(path: Path) -> list[str] | None:
    """The documents kept in a file; None when there is none or it is not what was written."""
    try:
        kept = json.loads(path.read_bytes())
        documents = kept["documents"]
        return documents if kept["sha256"] == _digest(documents) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, documents: list[str]) -> None:
    """Write the cache under a name of its own first; a folder that cannot be written costs one more second next time."""
    content = json.dumps({"sha256": _digest(documents), "documents": documents})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
            part.write(content)
        Path(part.name).replace(path)
    except OSError:
        return
