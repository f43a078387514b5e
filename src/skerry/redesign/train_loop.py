"""The steps of a training, what is kept on the way, and how it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from skerry.redesign.checkpointing import load_state, save_state
from skerry.redesign.train_folder import (
    BIRTHS,
    LOSSES,
    MODEL,
    RESULT,
    RESUME,
    append_lines,
    cut_lines,
    save_folder,
    write_json,
)
from skerry.redesign.train_setup import Session
from skerry.redesign.train_step import Loss, PlainLoss, clip_gradients, gradients, set_rate
from skerry.run.interrupt import Interrupt
from skerry.run.progress import Progress

STATE_SECONDS = 120.0
"""A state is saved at least so often: what a killed process loses."""
FLUSH_SECONDS = 2.0


class Loop:
    """Runs the steps of a session."""

    def __init__(
        self,
        session: Session,
        *,
        progress: Progress,
        save_every: int | None,
        births_every: int | None,
        on_step: Callable[[int, float, nn.Module], None] | None,
    ) -> None:
        """See `train`."""
        self.session, self.progress, self.on_step = session, progress, on_step
        self.save_every = save_every
        self.step, self.seconds = 0, 0.0
        self._pending: list[dict[str, Any]] = []
        self._births: Any = None
        if births_every:
            from skerry.redesign.births import Births

            self._births = Births(session.model, every=births_every)

    def resume(self) -> None:
        """Go on from the newest whole state, if there is one."""
        s = self.session
        state = load_state(s.folder / RESUME)
        if state is not None:
            for name in state.passed_over:
                self.progress.note(f"{name} is damaged; going on from step {state.step}")
            s.model.load_state_dict(state.content["model"])
            s.optimizer.load_state_dict(state.content["optimiser"])
            torch.set_rng_state(state.content["random"])
            if s.device.type == "cuda":
                torch.cuda.set_rng_state(state.content["random_device"], s.device)
            self.step, self.seconds = state.step, state.content["seconds"]
        cut_lines(s.folder / LOSSES, up_to=self.step)
        rows = cut_lines(s.folder / BIRTHS, up_to=self.step)
        if self._births is not None:
            self._births.resume(rows, step=self.step)

    def run(self, interrupt: Interrupt) -> None:
        """All steps that are left.

        Raises:
            KeyboardInterrupt: Asked for; the state is saved.
            Diverged: A loss or a gradient is not finite.
        """
        s = self.session
        self.progress.start("training", s.recipe.steps, "step")
        self.progress.advance(self.step)
        began = said = saved = time.perf_counter()
        base = self.seconds
        with ExitStack() as stack:
            objective = self._objective(stack)
            self._look(s.data.batch(0))
            while self.step < s.recipe.steps:
                self._one(objective)
                now = time.perf_counter()
                self.seconds = base + now - began
                if now - said > FLUSH_SECONDS:
                    said = now
                    self._flush()
                wanted = bool(self.save_every) and self.step % (self.save_every or 1) == 0
                if wanted:
                    self._save_model(f"checkpoint-{self.step}")
                if interrupt.requested or (
                    self.step < s.recipe.steps and (wanted or now - saved > STATE_SECONDS)
                ):
                    self._save_state()
                    saved = time.perf_counter()
                if interrupt.requested:
                    raise KeyboardInterrupt
        self._save_state()
        self.progress.done()

    def finish(self) -> None:
        """Held-out loss, final model, tables."""
        s = self.session
        if self.save_every:
            self._save_model(f"checkpoint-{self.step}")
        self._save_model(MODEL)
        tokens = self.step * s.recipe.batch * s.recipe.accumulation * s.recipe.context
        result = {
            "held_out": held_out_loss(s),
            "seconds": self.seconds,
            "tokens_per_second": tokens / max(self.seconds, 1e-9),
            "tokens": tokens,
        }
        write_json(s.folder / RESULT, result)

    def _objective(self, stack: ExitStack) -> Loss:
        wanted = self.session.recipe.objective
        if not wanted:
            return PlainLoss()
        from skerry.redesign.objective import make_objective

        return stack.enter_context(make_objective(self.session.model, dict(wanted)))

    def _one(self, objective: Loss) -> None:
        s = self.session
        micro = s.recipe.accumulation
        batches = [s.data.batch(self.step * micro + i).to(s.device) for i in range(micro)]
        rate = set_rate(s.optimizer, s.recipe, self.step)
        s.optimizer.zero_grad(set_to_none=True)
        loss, parts = gradients(s.run, batches, objective=objective, autocast=s.autocast())
        norm = clip_gradients([p for p in s.model.parameters() if p.requires_grad], s.recipe.clip)
        names = list(parts)
        values = torch.stack(
            [loss.float(), norm.float(), *(parts[n].to(loss.device).float() for n in names)]
        ).tolist()
        s.optimizer.step()
        self.step += 1
        row = {"step": self.step, "loss": values[0], "gradient_norm": values[1], "learning_rate": rate}
        self._pending.append({**row, **dict(zip(names, values[2:], strict=True))})
        self._look(batches[0])
        self.progress.advance()
        if self.on_step is not None:
            self.on_step(self.step, values[0], s.model)

    def _look(self, ids: Any) -> None:
        births = self._births
        done = births is not None and any(row["step"] == self.step for row in births.measured[-1:])
        if births is not None and births.due(self.step) and not done:
            with self.session.autocast():
                rows = births.measure(self.step, ids)
            append_lines(self.session.folder / BIRTHS, rows)

    def _flush(self) -> None:
        append_lines(self.session.folder / LOSSES, self._pending)
        self._pending = []

    def _save_model(self, name: str) -> None:
        s = self.session
        tokenizer = s.data.tokenizer
        save_folder(
            s.folder / name,
            s.model.save_pretrained,
            *([] if tokenizer is None else [tokenizer.save_pretrained]),
        )

    def _save_state(self) -> None:
        s = self.session
        self._flush()
        content = {
            "model": s.model.state_dict(),
            "optimiser": s.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "seconds": self.seconds,
        }
        if s.device.type == "cuda":
            content["random_device"] = torch.cuda.get_rng_state(s.device)
        save_state(s.folder / RESUME, self.step, content)


@torch.no_grad()
def held_out_loss(session: Session) -> float:
    """Mean loss over the held-out windows, nats, by the model itself, not compiled."""
    s = session
    windows = s.data.held_out()
    total = 0.0
    s.model.eval()
    with s.autocast():
        for ids in windows.split(s.recipe.batch):
            ids = ids.to(s.device)
            total += float(s.model(ids, labels=ids).loss) * len(ids)
    s.model.train()
    return total / len(windows)
