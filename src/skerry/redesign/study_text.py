"""The text of a study made ready once: one tokenizer and one file of ids that every arm maps into memory, instead of a tokenizer for each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from skerry.redesign.recipe import Recipe


def prepare_text(recipe: Recipe, place: Path) -> Recipe:
    """The recipe with its text as a token file and its tokenizer as a folder; as it is where there is nothing to prepare.

    Args:
        recipe: Names text and tokenizer; its context and batch say how much text is needed.
        place: Folder of the study.

    Raises:
        BadText, BadTokens: As `train` says, before anything is trained.
        UnknownOption: No such tokenizer.
    """
    import numpy as np

    from skerry.redesign.token_files import is_token_file
    from skerry.redesign.train_data import Windows, load_data

    asked = [recipe.text, recipe.tokenizer, recipe.vocabulary, recipe.held_out, recipe.context]
    folder = place / "text" / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:10]
    if not _is_ready(folder):
        data = load_data(recipe, None)
        if not isinstance(data, Windows) or is_token_file(recipe.text):
            return recipe
        data.tokenizer.save_pretrained(folder / "tokenizer")
        with (folder / ".tokens").open("wb") as file:
            np.save(file, np.concatenate([data.train, data.rest]))
        (folder / ".tokens").replace(folder / "tokens.npy")
    tokens, tokenizer = (str((folder / name).absolute()) for name in ("tokens.npy", "tokenizer"))
    return replace(recipe, text=tokens, tokenizer=tokenizer)


def _is_ready(folder: Path) -> bool:
    return (folder / "tokens.npy").is_file() and (folder / "tokenizer").is_dir()
