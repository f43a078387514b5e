"""The folder of a training: what is where, and when it may be gone on with.

recipe.json        what is trained; a folder is gone on with by the same recipe only
facts.json         what the recipe came to here: data and its key, precision, threads, sizes, versions
tokenizer/         of this training
losses.jsonl       one line per step, as it goes; births.jsonl likewise
resume/            the last states
checkpoint-N/      models asked for, each with its tokenizer
model/             the final model with its tokenizer
result.json        held-out loss and speed; there when all is done
losses.parquet     all steps as a table; births.parquet likewise
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from skerry.anatomy.hush import hushed
from skerry.errors import BrokenRun, RunExists
from skerry.redesign.recipe import Recipe
from skerry.run.files import no_space, replace_pointer, sync_folder
from skerry.run.tables import from_rows

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
RECIPE, FACTS, RESULT, MODEL = "recipe.json", "facts.json", "result.json", "model"
LOSSES, BIRTHS, RESUME, TOKENIZER = "losses.jsonl", "births.jsonl", "resume", "tokenizer"


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that is not this recipe's.

    Raises:
        RunExists: It is another recipe's, with the difference; or it holds other files.
        BrokenRun: Its recipe cannot be read.
    """
    path = folder / RECIPE
    if path.is_file():
        differences = recipe.differences(read_json(path))
        if differences:
            raise RunExists(
                f"{folder} holds a training with another recipe: {'; '.join(differences)}. Give the same recipe to go on, or another folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(p.name != "lock" for p in folder.iterdir())):
        raise RunExists(f"{folder} is not empty and holds no training; choose another folder")


def claim_folder(folder: Path, recipe: Recipe, facts: Mapping[str, Any], tokenizer: Any) -> None:
    """Make the folder this recipe's; what is there stays.

    Raises:
        RunExists: It was trained on other text.
        NoSpace: The disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    if before and before.get("data_key") != facts["data_key"]:
        raise RunExists(
            f"the text of the training in {folder} has changed: {before.get('data')} with {before.get('num_tokens')} tokens there, "
            f"{facts['data']} with {facts['num_tokens']} here; give the same text to go on, or another folder"
        )
    if not (folder / RECIPE).is_file():
        write_json(folder / RECIPE, recipe.plain())
    if tokenizer is not None:
        save_folder(folder / TOKENIZER, tokenizer.save_pretrained)
    write_json(folder / FACTS, facts)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write or replace a small file, atomically."""
    replace_pointer(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file.

    Raises:
        BrokenRun: It is not JSON.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BrokenRun(f"{path} cannot be read ({error}); delete the folder and train again") from error
    return dict(found)


def save_folder(path: Path, *parts: Callable[[Path], object]) -> None:
    """Write a folder under another name and rename it: it is there whole or not at all; one that is there stays.

    Raises:
        NoSpace: The disk is full; nothing is left behind.
    """
    if path.is_dir():
        return
    temporary = path.with_name(f".writing-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with hushed():
            for part in parts:
                part(temporary)
        temporary.rename(path)
        sync_folder(path.parent)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_full(error):
            raise no_space(path.parent) from error
        raise


def is_full(error: Exception) -> bool:
    """Whether an error says that the disk is full; safetensors and torch wrap the system's, whose text or number remains."""
    known = ("No space left", "Disk quota", "os error 28", "File too large", "PytorchStreamWriter failed")
    return getattr(error, "errno", None) in _FULL or any(words in str(error) for words in known)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, one JSON object per line.

    Raises:
        NoSpace: The disk is full.
    """
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not text:
        return
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        if is_full(error):
            raise no_space(path.parent) from error
        raise


def read_lines(path: Path, *, up_to: int) -> list[dict[str, Any]]:
    """Rows of steps up to this one; a last line that a killed process left unfinished is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= up_to:
            rows.append(row)
    return rows


def cut_lines(path: Path, *, up_to: int) -> list[dict[str, Any]]:
    """Drop rows of later steps from the file, and return those that stay."""
    rows = read_lines(path, up_to=up_to)
    if path.is_file():
        replace_pointer(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows


def save_table(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows as a Parquet file with the columns that `run/training_tables.py` explains.

    Raises:
        NoSpace: The disk is full.
    """
    import pyarrow.parquet as pq

    temporary = folder / f".writing-{name}.parquet"
    try:
        pq.write_table(from_rows(name, rows), temporary, compression="zstd")
        temporary.replace(folder / f"{name}.parquet")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_full(error):
            raise no_space(folder) from error
        raise
