"""One trial: a recipe trained with every seed, its goals measured, the folder gone afterwards.

Everything a trial needs and gives is a plain value, so it runs in this process or in another one.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from skerry.errors import NoSpace, SkerryError
from skerry.redesign.optimize_goals import find_goals, measure_goals
from skerry.redesign.recipe import Recipe
from skerry.redesign.train import train
from skerry.redesign.train_data import BACKCOPY, load_data
from skerry.redesign.train_folder import save_folder, write_json

CALIBRATION = 32
"""Windows of the training text that static ranges come from."""


class Prepared(NamedTuple):
    """Text and tokenizer of all trials, tokenized once; fields of a recipe.

    Attributes:
        text: Token file, or what the recipe named.
        tokenizer: Folder, or what the recipe named.
    """

    text: str | None
    tokenizer: str | None


@dataclass(frozen=True)
class Job:
    """A trial to run.

    Attributes:
        number: Of the trial.
        recipe: Plain values, as it would be retrained.
        prepared: What is trained on in its place: the same tokens.
        goals: Names.
        seeds: Trainings, with the recipe's seed and those that follow it.
        folder: Where trainings go.
        keep: Keep the trained models.
        threads: Of the CPU; chosen when None.
    """

    number: int
    recipe: dict[str, Any]
    prepared: Prepared
    goals: tuple[str, ...]
    seeds: int
    folder: str
    keep: bool
    threads: int | None


class Done(NamedTuple):
    """What a trial gave.

    Attributes:
        number: Of the trial.
        values: Mean over seeds, in the order of the goals; None where it failed.
        seconds: Time.
        reason: Why it failed; None where it did not.
    """

    number: int
    values: tuple[float, ...] | None
    seconds: float
    reason: str | None


def prepare(recipe: Recipe, folder: Path) -> Prepared:
    """Tokenize the text of a recipe into a folder, once; what is there stays.

    Raises:
        BadText, BadTokens: It cannot be trained on.
    """
    tokens, tokenizer = folder / "tokens.npy", folder / "tokenizer"
    if recipe.text == BACKCOPY:
        return Prepared(recipe.text, recipe.tokenizer)
    if not (tokens.is_file() and tokenizer.is_dir()):
        data: Any = load_data(recipe, None)
        if data.tokenizer is None:
            return Prepared(recipe.text, None)
        folder.mkdir(parents=True, exist_ok=True)
        partial = tokens.with_name(".writing-tokens.npy")
        np.save(partial, np.concatenate([data.train, data.rest]))
        save_folder(tokenizer, data.tokenizer.save_pretrained)
        partial.rename(tokens)
    return Prepared(str(tokens), str(tokenizer))


def run_trial(job: Job) -> Done:
    """Train and measure; what a recipe cannot do is a reason, what stops every trial is raised.

    Raises:
        NoSpace: The disk is full.
        KeyboardInterrupt: Ctrl-C; the training's state is saved.
    """
    began = time.perf_counter()
    try:
        found = [_train(job, seed) for seed in range(job.seeds)]
    except NoSpace:
        raise
    except SkerryError as error:
        return Done(job.number, None, time.perf_counter() - began, str(error).splitlines()[0])
    values = tuple(float(x) for x in np.mean(found, axis=0))
    seconds = time.perf_counter() - began
    if bad := [goal for goal, x in zip(job.goals, values, strict=True) if not math.isfinite(x)]:
        return Done(job.number, None, seconds, f"{', '.join(bad)} is not a finite number")
    return Done(job.number, values, seconds, None)


def _train(job: Job, seed: int) -> list[float]:
    """Goals of one seed; a seed that is finished is read from its folder."""
    recipe = Recipe.from_plain(job.recipe)
    recipe = replace(
        recipe, seed=recipe.seed + seed, text=job.prepared.text, tokenizer=job.prepared.tokenizer
    )
    folder = Path(job.folder) / f"{job.number:04d}-seed{seed}"
    measured = folder.with_suffix(".json")
    if measured.is_file():
        from skerry.redesign.train_folder import read_json

        told = read_json(measured)
        return [float(told[name]) for name in job.goals]
    trained = train(recipe, folder, threads=job.threads)
    data = load_data(recipe, folder / "tokenizer")
    calibration = torch.cat([data.batch(n) for n in range(-(-CALIBRATION // recipe.batch))])[:CALIBRATION]
    found = measure_goals(trained.model, data.held_out(), calibration, find_goals(job.goals))
    write_json(measured, found)
    if not job.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return [found[name] for name in job.goals]
