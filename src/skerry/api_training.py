"""The Python face of trainings: training itself, and checkpoints read one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.answers import Watch
from skerry.api import _options
from skerry.run import Progress

if TYPE_CHECKING:
    from skerry.redesign.recipe import Recipe
    from skerry.redesign.train import Trained


def births(
    checkpoints: str | Path | Iterable[str | Path],
    data: str | Path | Iterable[Any] | None = None,
    *,
    revisions: Iterable[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Watch:
    """See outliers being born in a series of checkpoints.

    Args:
        checkpoints: The folder of a training (or several, e.g. seeds), checkpoints of one training, or a hub id with revisions.
        data: As for `scan`; every checkpoint reads the same.
        revisions: Of the hub id, e.g. `["step0", "step512", "step1000"]`.
        progress: Told how far it is.
        options: Those of `scan`: samples, tokens, seed, out, dtype, device, batch_size, bos, threads, tokenizer, trust_remote_code.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.redesign.watch_series import watch_series

    places = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    named = [revisions] if isinstance(revisions, str) else list(revisions)
    return Watch(watch_series(places, data, _options(options), progress, revisions=named))


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    device: Any = None,
    threads: int | None = None,
    save_every: int | None = None,
    births_every: int | None = None,
    on_step: Callable[..., None] | None = None,
    dtype: str = "fp32",
    **fields: Any,
) -> Trained:
    """Train a decoder, or go on with an interrupted training, or read a finished one.

    Args:
        recipe: Where to start from: a recipe, its plain values, a JSON file, the folder of a training, a built-in model's name; the defaults
            when None.
        out: Folder; one under ./skerry-runs when None, the same for the same recipe.
        progress: Told how far it is.
        device: Chosen when None.
        threads: CPU threads; chosen when None.
        save_every: Steps between two models that are kept; the final one alone when None.
        births_every: Steps between two looks at outliers; 25 when None, 0 for none.
        on_step: Called after every step with the number of steps done, the loss and the model.
        dtype: Of the final model: fp32, bf16, fp16.
        fields: Fields of the recipe that are otherwise, e.g. `attention="scaled", steps=2000`.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.redesign.train import train as run
    from skerry.redesign.train_recipes import find_recipe

    found = find_recipe(recipe, fields)
    return run(
        found,
        default_folder(found) if out is None else out,
        progress=progress,
        device=device,
        threads=threads,
        save_every=save_every,
        births_every=births_every,
        on_step=on_step,
        dtype=dtype,
    )


def default_folder(recipe: Recipe) -> Path:
    """Where a training goes that was not told where: the same place for the same recipe."""
    from skerry.outliers.options import DEFAULT_FOLDER
    from skerry.redesign.train_recipes import recipe_key

    return DEFAULT_FOLDER / f"train-{recipe.attention}-{recipe_key(recipe)}"
