"""One optimiser step: micro-batches forward and backward, the norm of the gradient clipped, the rate of the schedule.

    g = (1/A) sum_a grad L(micro-batch a);   g <- g min(1, c / (|g| + 1e-6));   optimiser step at rate lr factor(t)

The loss and the norm are read before the optimiser moves: a value that is not finite stops the training while the weights are still those that
made it, so the first bad site can be found (`train_diverged.py`). That is one wait for the device per step, with the next batch already drawn.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from skerry.redesign.recipe import Recipe
from skerry.redesign.schedule import factor
from skerry.redesign.train_setup import Session


class Loss(Protocol):
    """What is minimised."""

    def loss(self, model: nn.Module, input_ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The loss with its graph, and its parts by name."""


class PlainLoss:
    """The mean loss of the next token."""

    def loss(
        self, model: nn.Module, input_ids: Int[Tensor, "sample position"]
    ) -> tuple[Tensor, dict[str, Any]]:
        """In nats."""
        return model(input_ids, labels=input_ids).loss, {}


class Stepped(NamedTuple):
    """What a step found before the optimiser moved.

    Attributes:
        loss: Mean over the micro-batches, nats.
        gradient_norm: Before clipping.
        rate: Learning rate of the step.
        parts: Parts of the loss by name, means over the micro-batches.
        stop: Whether any process was asked to stop.
        save: Whether the first process wants the state saved after the step.
    """

    loss: float
    gradient_norm: float
    rate: float
    parts: dict[str, float]
    stop: bool
    save: bool

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def take_step(
    session: Session, objective: Loss, step: int, batches: list[Tensor], *, stop: bool, save: bool
) -> Stepped:
    """One step; the optimiser moves only when loss and gradient are finite.

    Args:
        session: The training.
        objective: What is minimised.
        step: Counted from 0.
        batches: This process's rows of the micro-batches, on its device.
        stop: Whether this process was asked to stop.
        save: Whether this process wants the state saved; all processes must save together, so they tell each other.
    """
    devices, prepared = session.devices, session.prepared
    rate = set_rate(prepared.optimizer, session.recipe, step)
    prepared.optimizer.zero_grad(set_to_none=True)
    total: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for ids in batches:
        with session.autocast():
            loss, parts = objective.loss(session.run, ids)
        (loss / len(batches) if len(batches) > 1 else loss).backward()
        total = loss.detach() if total is None else total + loss.detach()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + torch.as_tensor(value, device=ids.device).detach()
    assert total is not None
    norm = devices.clip(prepared.run, session.recipe.clip)
    read = torch.stack([(x / len(batches)).float() for x in (total, *sums.values())])
    flags = read.new_tensor([float(stop), float(save)])
    # One transfer for all numbers of the step.
    found = torch.cat([devices.mean(torch.cat([read, flags])), norm.float().reshape(1)]).tolist()
    parts_read = dict(zip(sums, found[1 : 1 + len(sums)], strict=True))
    stepped = Stepped(found[0], found[-1], rate, parts_read, found[-3] > 0, found[-2] > 0)
    if stepped.is_finite:
        prepared.optimizer.step()
    return stepped


def set_rate(optimizer: Optimizer, recipe: Recipe, step: int) -> float:
    """The learning rate of the step, counted from 0."""
    rate = recipe.learning_rate * factor(
        step,
        schedule=recipe.schedule,
        steps=recipe.steps,
        warmup=recipe.warmup,
        final=recipe.final,
        decay_share=recipe.decay_share,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
