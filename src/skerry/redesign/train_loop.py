"""The steps of a training, what is kept on the way, and how it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skerry.errors import Diverged, NotPossible
from skerry.redesign.checkpointing import load_state
from skerry.redesign.train_data import Draw
from skerry.redesign.train_diverged import first_bad_place
from skerry.redesign.train_folder import BIRTHS, LOSSES, RESUME, append_lines, cut_lines
from skerry.redesign.train_keep import keep_model, keep_state
from skerry.redesign.train_setup import Session
from skerry.redesign.train_step import Backward, PlainLoss, Stepped, take_step
from skerry.run.interrupt import Interrupt
from skerry.run.progress import Progress

STATE_SECONDS = 120.0
"""A state is saved at least so often: what a killed process loses."""
FLUSH_SECONDS = 2.0
_SAYS = 10
"""How often the loss is told."""

OnStep = Callable[[int, float, nn.Module], None]


class Loop:
    """Runs the steps of a session.

    Attributes:
        step: Optimiser steps done.
        seconds: Time of all steps done, interruptions left out.
        privacy: What private gradients promise; None without them.
    """

    def __init__(
        self,
        session: Session,
        *,
        progress: Progress,
        save_every: int | None,
        births_every: int | None,
        on_step: OnStep | None,
    ) -> None:
        """See `train`."""
        self.session, self.progress, self.on_step = session, progress, on_step
        self.save_every = save_every
        self.step, self.seconds = 0, 0.0
        self._pending: list[dict[str, Any]] = []
        self._last: list[float] = []
        self.privacy: Any = None
        self._draw: Draw | None = None
        self._births: Any = None
        if births_every and session.devices.is_sharded:
            raise NotPossible(
                "births are read from whole weights, and this launch shards them; launch without FSDP, or with --births-every 0"
            )
        wanted = births_every != 0 and not session.devices.is_sharded
        if wanted and session.devices.is_main:
            from skerry.redesign.births import Births

            self._births = Births(session.model, every=births_every)

    def resume(self) -> None:
        """Go on from the newest whole state, if there is one."""
        s = self.session
        state = load_state(s.folder / RESUME)
        if state is not None:
            for name in state.passed_over:
                self.progress.note(f"{name} is damaged; going on from step {state.step}")
            s.devices.load(s.model, s.prepared, state.content)
            torch.set_rng_state(state.content["random"])
            if s.devices.device.type == "cuda" and "random_device" in state.content:
                torch.cuda.set_rng_state(state.content["random_device"], s.devices.device)
            self.step, self.seconds = state.step, state.content["seconds"]
        if s.devices.is_main:
            cut_lines(s.folder / LOSSES, up_to=self.step)
            rows = cut_lines(s.folder / BIRTHS, up_to=self.step)
            if self._births is not None:
                self._births.resume(rows, step=self.step)
        s.devices.wait()

    def run(self, interrupt: Interrupt) -> None:
        """All steps that are left.

        Raises:
            KeyboardInterrupt: Asked for; the state is saved.
            Diverged: A loss or a gradient is not finite.
        """
        s = self.session
        self.progress.start("training", s.recipe.steps, "step")
        self.progress.advance(self.step)
        flushed = saved = began = time.perf_counter()
        with ExitStack() as stack:
            objective = self._objective(stack)
            batches = self._batches(self.step)
            if self.step == 0:
                self._look(batches[0])
            while self.step < s.recipe.steps:
                due = s.devices.is_main and time.perf_counter() - saved > STATE_SECONDS
                done = take_step(s, objective, self.step, batches, stop=interrupt.requested, save=due)
                if not done.is_good:
                    self._diverged(batches, done)
                self.step += 1
                self._look(batches[0])
                batches = self._batches(self.step)
                now = time.perf_counter()
                self._record(done, now - began)
                began = now
                if now - flushed > FLUSH_SECONDS:
                    self._flush()
                    flushed = now
                wanted = self._wants_model()
                if wanted:
                    keep_model(s, f"checkpoint-{self.step}")
                if done.stop or done.save or wanted:
                    self.keep_state()
                    saved = time.perf_counter()
                if done.stop:
                    raise KeyboardInterrupt
        self.keep_state()
        self.progress.done()

    def keep_state(self) -> None:
        """Save what a later process goes on from."""
        self._flush()
        keep_state(self.session, self.step, seconds=self.seconds)

    def _batches(self, step: int) -> list[Tensor]:
        s = self.session
        if step >= s.recipe.steps:
            return []
        count = s.recipe.accumulation
        return [
            s.devices.share(s.data.batch(step * count + i, self._draw)).to(s.devices.device)
            for i in range(count)
        ]

    def _wants_model(self) -> bool:
        every = self.save_every
        return bool(every) and (self.step % (every or 1) == 0 or self.step == self.session.recipe.steps)

    def _objective(self, stack: ExitStack) -> Backward:
        s, recipe = self.session, self.session.recipe
        if not recipe.objective:
            return PlainLoss()
        from skerry.redesign.objective import make_objective

        objective = make_objective(
            s.model,
            recipe.objective,
            seed=recipe.seed,
            batch=recipe.batch,
            steps=recipe.steps,
            tokens=s.data.num_tokens,
            context=recipe.context,
            bos=s.data.bos,
            accumulation=recipe.accumulation,
            compiled=recipe.compile,
        )
        if objective.owns_backward:
            if s.devices.num_processes > 1:
                raise NotPossible("private gradients are made in one process; launch one")
            if s.data.num_tokens is None:
                raise NotPossible(f"private training needs a text with an end, and {s.data.name} has none")
        self._draw = objective.draw
        self.privacy = objective.privacy(recipe.steps)
        opened: Backward = stack.enter_context(objective)
        return opened

    def _record(self, done: Stepped, seconds: float) -> None:
        self.seconds += seconds
        loss = None if math.isnan(done.loss) else done.loss
        row = {"step": self.step, "loss": loss, "gradient_norm": done.gradient_norm}
        more = {"parts": {**done.parts, "total": done.total}} if done.parts else {}
        self._pending.append({**row, "learning_rate": done.rate, "seconds": seconds, **more})
        self._last = [*self._last[-49:], done.loss]
        self.progress.advance()
        if self.step % max(1, self.session.recipe.steps // _SAYS) == 0:
            self.progress.note(f"step {self.step}: loss {np.nanmean(self._last):.3f}")
        if self.on_step is not None:
            self.on_step(self.step, done.loss, self.session.model)

    def _look(self, ids: Tensor) -> None:
        births = self._births
        if births is not None and births.due(self.step):
            with self.session.autocast():
                rows = births.measure(self.step, ids)
            append_lines(self.session.folder / BIRTHS, rows)

    def _flush(self) -> None:
        if self.session.devices.is_main:
            append_lines(self.session.folder / LOSSES, self._pending)
        self._pending = []

    def _diverged(self, batches: list[Tensor], done: Stepped) -> None:
        self._flush()
        s = self.session
        place = "its place cannot be found in sharded weights"
        if not s.devices.is_sharded:
            found = (first_bad_place(s.model, ids, s.autocast()) for ids in batches)
            place = next((words for words in found if "first site" in words), None) or first_bad_place(
                s.model, batches[0], s.autocast()
            )
        state = load_state(s.folder / RESUME) if s.devices.is_main else None
        kept = "no state was saved before" if state is None else f"the state of step {state.step} is kept"
        raise Diverged(
            f"step {self.step + 1}: the loss is {done.total:g} and the norm of the gradient {done.gradient_norm:g}; {place}. "
            f"The step was not taken, and {kept} in {s.folder}. The same recipe breaks at the same step: train with a smaller learning rate, "
            "a longer warm-up, clipping, or precision fp32 in another folder"
        )
