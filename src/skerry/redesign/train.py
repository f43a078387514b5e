"""Train a recipe's decoder in a folder; the same call goes on where it stopped, with the same losses bit for bit as if it had not.

    train(Recipe(attention="scaled", steps=2000), "runs/scaled")

The folder is described in `train_folder.py`. A finished one is read and returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from skerry.redesign.recipe import Recipe
from skerry.redesign.train_folder import (
    LOSSES,
    MODEL,
    RESULT,
    claim_folder,
    read_json,
    read_lines,
)
from skerry.redesign.train_loop import Loop
from skerry.redesign.train_setup import set_up
from skerry.run.interrupt import deferred_interrupt
from skerry.run.lock import Lock
from skerry.run.progress import Progress, Silent

OnStep = Callable[[int, float, nn.Module], None]


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
    births_every: int | None = None,
    on_step: OnStep | None = None,
) -> Trained:
    """Train, or go on, or read what is finished.

    Args:
        recipe: What.
        out: Folder: a new one, or one of the same recipe.
        progress: Told how far it is.
        device: Chosen when None.
        threads: Of the CPU; chosen when None, and kept for a training that goes on.
        save_every: Steps between two models that are kept, in `checkpoint-N`; None for the final one alone.
        births_every: Steps between two looks at outliers; None for none.
        on_step: Called after every step with the number of steps done, the loss and the model.

    Raises:
        RunExists: The folder holds another recipe, or files of others.
        BadText, BadTokens: The text is too short, or does not fit the vocabulary.
        UnknownOption: A name or number of the recipe that cannot be meant.
        Diverged: The loss is no longer finite; the message names step and site.
        NoSpace: The disk is full; what was saved before is whole.
        KeyboardInterrupt: Ctrl-C; the state is saved first.
    """
    folder = Path(out)
    claim_folder(folder, recipe)
    if (folder / RESULT).is_file():
        return read_trained(folder)
    lock = Lock(folder)
    lock.acquire()
    try:
        session = set_up(recipe, folder, device=device, threads=threads)
        loop = Loop(
            session,
            progress=progress or Silent(),
            save_every=save_every,
            births_every=births_every,
            on_step=on_step,
        )
        with session.opened(), deferred_interrupt() as interrupt:
            loop.resume()
            loop.run(interrupt)
            loop.finish()
    finally:
        lock.release()
    return read_trained(folder)


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
    model = AutoModelForCausalLM.from_pretrained(folder / MODEL).eval()
    return Trained(
        folder=folder,
        model=model,
        recipe=recipe,
        losses=np.array([row["loss"] for row in rows]),
        held_out=float(result["held_out"]),
        seconds=float(result["seconds"]),
        tokens_per_second=float(result["tokens_per_second"]),
    )
