"""Steps for their time alone: nothing is written, nothing is kept."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from skerry.redesign.recipe import Recipe
from skerry.redesign.train_data import Data
from skerry.redesign.train_devices import Devices
from skerry.redesign.train_model import choose_precision, make_model, make_optimiser
from skerry.redesign.train_setup import Session
from skerry.redesign.train_step import Backward, PlainLoss, take_step


class Stepper:
    """A decoder that is stepped as a training steps it.

    Attributes:
        step: Steps done.
        session: The training, without a folder.
    """

    def __init__(self, recipe: Recipe, data: Data, device: torch.device | str | None = None) -> None:
        """Random weights from the recipe's seed; the number of threads is the caller's."""
        devices = Devices(device)
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            model = make_model(recipe, vocab_size=data.vocab_size, bos=data.bos)
        model.to(devices.device).train()  # type: ignore[arg-type]
        prepared = devices.prepare(model, make_optimiser(recipe, model))
        self.session = Session(
            recipe=recipe,
            folder=Path(),
            data=data,
            devices=devices,
            model=model,
            prepared=prepared,
            run=torch.compile(model) if recipe.compile else model,  # type: ignore[arg-type]
            bf16=choose_precision(recipe.precision, devices.device).value == "bf16",
            threads=torch.get_num_threads(),
        )
        self.step, self._objective = 0, PlainLoss()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.session.devices.device

    def seconds(self, steps: int) -> float:
        """Time of so many steps of the plain loss."""
        objective: Backward = self._objective
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            take_step(self.session, objective, self.step, self._batches(), stop=False, save=False)
            self.step += 1
        self._wait()
        return time.perf_counter() - start

    def _batches(self) -> list[Tensor]:
        count = self.session.recipe.accumulation
        return [self.session.data.batch(self.step * count + i).to(self.device) for i in range(count)]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
