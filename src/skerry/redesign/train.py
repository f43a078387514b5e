"""Train a recipe's decoder in a folder; the same call goes on where it stopped, with the same losses bit for bit as if it had not.

    train(Recipe(attention="scaled", steps=2000), "runs/scaled")

The folder is described in `train_folder.py`. A finished one is read and returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerry.anatomy.hush import hushed
from skerry.errors import UnknownOption, near_matches
from skerry.redesign.recipe import Recipe
from skerry.redesign.train_check import check_recipe
from skerry.redesign.train_devices import Devices, find_devices
from skerry.redesign.train_folder import (
    LOSSES,
    MODEL,
    RESULT,
    check_folder,
    read_json,
    read_lines,
)
from skerry.redesign.train_keep import EXPORTS, finish
from skerry.redesign.train_loop import Loop, OnStep
from skerry.redesign.train_setup import set_up
from skerry.run.interrupt import deferred_interrupt
from skerry.run.lock import Lock
from skerry.run.progress import Progress, Silent


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: Where it is.
        model: The final model, in evaluation mode.
        recipe: What was trained.
        losses: Of every step, nats; the mean over the step's windows, before the step.
        held_out: Loss on held-out windows, nats.
        seconds: Time of all steps, those before an interruption included.
        tokens_per_second: Trained tokens over these seconds.
    """

    folder: Path
    model: Any
    recipe: Recipe
    losses: np.ndarray
    held_out: float
    seconds: float
    tokens_per_second: float

    def __repr__(self) -> str:
        return (
            f"<Trained {self.recipe.attention} decoder in {self.folder}: {len(self.losses):,} steps, held-out loss {self.held_out:.3f}; "
            ".model, .losses, skerry.scan(.folder / 'model')>"
        )


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    progress: Progress | None = None,
    device: Any = None,
    threads: int | None = None,
    save_every: int | None = None,
    births_every: int | None = 0,
    on_step: OnStep | None = None,
    dtype: str = "fp32",
) -> Trained:
    """Train, or go on, or read what is finished.

    Args:
        recipe: What.
        out: Folder: a new one, or one of the same recipe.
        progress: Told how far it is.
        device: Chosen when None.
        threads: Of the CPU; chosen when None, and kept for a training that goes on.
        save_every: Steps between two models that are kept, in `checkpoint-N`; None for the final one alone.
        births_every: Steps between two looks at outliers; 0 for none, None for as many as cost about 1 % of the time.
        on_step: Called after every step with the number of steps done, the loss and the model.
        dtype: Of the final model: fp32, bf16 or fp16. States and checkpoints are float32.

    Raises:
        RunExists: The folder holds another recipe, with the difference, or files of others, or is being written by another process.
        BadText, BadTokens: The text is too short, or does not fit the vocabulary.
        UnknownOption: A name or number of the recipe that cannot be meant.
        Diverged: The loss is no longer finite; the message names step and site.
        NoSpace: The disk is full; what was saved before is whole.
        KeyboardInterrupt: Ctrl-C; the state is saved first.
    """
    check_recipe(recipe)
    _check_asked(save_every, births_every, dtype)
    folder, devices = Path(out), find_devices(device)
    check_folder(folder, recipe)
    if (folder / RESULT).is_file():
        return read_trained(folder)
    progress = (progress if devices.is_main else None) or Silent()
    with _locked(folder, devices):
        count = recipe.steps // save_every + 1 if save_every else 0
        session = set_up(recipe, folder, devices, threads=threads, num_checkpoints=count)
        loop = Loop(
            session, progress=progress, save_every=save_every, births_every=births_every, on_step=on_step
        )
        with session.opened(), deferred_interrupt() as interrupt:
            loop.resume()
            loop.run(interrupt)
            finish(session, step=loop.step, seconds=loop.seconds, dtype=dtype, privacy=loop.privacy)
        devices.wait()
    return read_trained(folder)


def _check_asked(save_every: int | None, births_every: int | None, dtype: str) -> None:
    if save_every is not None and save_every < 1:
        raise UnknownOption(f"save_every is {save_every}; it must be at least 1")
    if births_every is not None and births_every < 0:
        raise UnknownOption(f"births_every is {births_every}; it must be at least 1, or 0 for never")
    if dtype not in EXPORTS:
        near = near_matches(dtype, list(EXPORTS))
        raise UnknownOption(
            f"there is no dtype {dtype!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(EXPORTS)}"
        )


@contextmanager
def _locked(folder: Path, devices: Devices) -> Iterator[None]:
    """The first process alone writes; a folder that stays empty is removed."""
    if not devices.is_main:
        yield
        return
    lock = Lock(folder)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
        if not any(folder.iterdir()):
            folder.rmdir()


def read_trained(folder: str | Path) -> Trained:
    """A finished training from its folder.

    Raises:
        BrokenRun: A file of it cannot be read.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    recipe = Recipe.from_plain(read_json(folder / "recipe.json"))
    result = read_json(folder / RESULT)
    rows = read_lines(folder / LOSSES, up_to=recipe.steps)
    with hushed():
        model = AutoModelForCausalLM.from_pretrained(folder / MODEL).eval()
    return Trained(
        folder=folder,
        model=model,
        recipe=recipe,
        losses=np.array([row["loss"] for row in rows], dtype=float),
        held_out=float(result["held_out"]),
        seconds=float(result["seconds"]),
        tokens_per_second=float(result["tokens_per_second"]),
    )
