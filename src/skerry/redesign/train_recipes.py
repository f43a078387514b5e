"""Where a recipe comes from: a file, the folder of a training, a built-in model, or the defaults; and what is changed in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skerry.anatomy.builtins import built_in
from skerry.errors import UnknownOption, near_matches
from skerry.redesign.recipe import Recipe
from skerry.redesign.train_folder import RECIPE


def find_recipe(start: Recipe | Mapping[str, Any] | str | Path | None, changes: Mapping[str, Any]) -> Recipe:
    """A recipe to start from, with some fields changed.

    Args:
        start: A recipe, its plain values, a JSON file, a folder with a `recipe.json`, the name of a built-in model; the defaults when None.
        changes: Fields by name.

    Raises:
        UnknownOption: It cannot be found or read, or has a field that recipes do not have.
    """
    if start is None:
        plain: dict[str, Any] = {}
    elif isinstance(start, Recipe):
        plain = start.plain()
    elif isinstance(start, Mapping):
        plain = dict(start)
    else:
        plain = _read(_place(Path(start).expanduser()))
    return Recipe.from_plain({**plain, **changes})


def recipe_key(recipe: Recipe) -> str:
    """A short name of the recipe's content: the same for the same recipe."""
    return hashlib.sha256(json.dumps(recipe.plain(), sort_keys=True).encode()).hexdigest()[:8]


def _place(path: Path) -> Path:
    if path.is_file():
        return path
    known = {
        m.name: m.folder / RECIPE for m in built_in().values() if m.folder and (m.folder / RECIPE).is_file()
    }
    for found in (path / RECIPE, known.get(str(path))):
        if found is not None and found.is_file():
            return found
    near = near_matches(str(path), list(known))
    names = f"{', '.join(known)} are built in" if known else "none is built in"
    raise UnknownOption(
        f"there is no recipe {str(path)!r}{f'; did you mean {near}?' if near else ':'} a JSON file, the folder of a training or a name is expected ({names})"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnknownOption(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UnknownOption(
            f"the recipe {path} holds a {type(found).__name__}; an object with fields is expected"
        )
    return found
