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

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from skerry.errors import BrokenRun, RunExists
from skerry.redesign.recipe import Recipe
from skerry.run.files import no_space, replace_pointer, sync_folder

RECIPE, FACTS, RESULT, MODEL = "recipe.json", "facts.json", "result.json", "model"
LOSSES, BIRTHS, RESUME, TOKENIZER = "losses.jsonl", "births.jsonl", "resume", "tokenizer"


def claim_folder(folder: Path, recipe: Recipe) -> None:
    """Make the folder this recipe's, or find that it is.

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
        return
    if folder.is_dir() and any(p.name != "lock" for p in folder.iterdir()):
        raise RunExists(f"{folder} is not empty and holds no training; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, recipe.plain())


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
        for part in parts:
            part(temporary)
        temporary.rename(path)
        sync_folder(path.parent)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors and tokenizers wrap the system's error; its text still names it.
        if "No space left" in str(error) or "Disk quota" in str(error) or "os error 28" in str(error):
            raise no_space(path.parent) from error
        raise


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, one JSON object per line."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if text:
        with path.open("a") as file:
            file.write(text)


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
