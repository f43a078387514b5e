"""One optimiser step: micro-batches forward and backward, the norm of the gradient clipped, the rate of the schedule.

    g = (1/A) sum_a grad L(micro-batch a);   g <- g min(1, c / (|g| + 1e-6));   optimiser step at rate lr factor(t)

The loss and the norm are read before the optimiser moves: a value that is not finite stops the training while the weights are still those that
made it, so the first bad site can be found (`train_diverged.py`). That is one wait for the device per step, with the next batch already drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from skerry.redesign.recipe import Recipe
from skerry.redesign.schedule import factor
from skerry.redesign.train_setup import Session


class Found(NamedTuple):
    """What a backward pass found, without graph; as an `objective.ObjectiveLoss`.

    Attributes:
        total: What is minimised.
        parts: `loss`, and what is added to it.
    """

    total: Tensor
    parts: dict[str, Tensor]


@runtime_checkable
class Backward(Protocol):
    """What is minimised: the plain loss, or an `objective.Objective`."""

    def backward(
        self,
        model: nn.Module,
        input_ids: Tensor,
        *,
        number: int,
        share: float,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> Any:
        """Add the gradient of a micro-batch, times its share; give total and parts."""

    def finish(self, step: int) -> None:
        """After the last micro-batch of a step."""


class PlainLoss:
    """The mean loss of the next token, in nats."""

    def backward(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "sample position"],
        *,
        number: int,
        share: float,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> Found:
        """Forward in the autocast, backward outside."""
        with autocast():
            loss = model(input_ids, labels=input_ids).loss
        (loss if share == 1.0 else loss * share).backward()
        return Found(loss.detach(), {"loss": loss.detach()})

    def finish(self, step: int) -> None:
        """Nothing."""


class Stepped(NamedTuple):
    """What a step found before the optimiser moved.

    Attributes:
        loss: Of the next token, mean over the micro-batches, nats; NaN for an empty batch, which private training may draw.
        total: What is minimised.
        gradient_norm: Before clipping.
        rate: Learning rate of the step.
        parts: What is added to the loss, by name, before its weight.
        stop: Whether any process was asked to stop.
        save: Whether the first process wants the state saved after the step.
        is_good: Whether total and gradient are finite, and the optimiser has moved.
    """

    loss: float
    total: float
    gradient_norm: float
    rate: float
    parts: dict[str, float]
    stop: bool
    save: bool
    is_good: bool


def take_step(
    session: Session, objective: Backward, step: int, batches: list[Tensor], *, stop: bool, save: bool
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
    devices, prepared, count = session.devices, session.prepared, len(batches)
    rate = set_rate(prepared.optimizer, session.recipe, step)
    prepared.optimizer.zero_grad(set_to_none=True)
    found = [
        objective.backward(
            session.run, ids, number=step * count + i, share=1 / count, autocast=session.autocast
        )
        for i, ids in enumerate(batches)
    ]
    objective.finish(step)
    norm = devices.clip(prepared.run, session.recipe.clip)
    names = list(found[0].parts)
    rows = [torch.stack([x.float() for x in (f.total, *f.parts.values())]) for f in found]
    read = sum(rows[1:], rows[0]) / count
    flags = read.new_tensor([float(stop), float(save)])
    # One transfer for all numbers of the step.
    numbers = torch.cat([devices.mean(torch.cat([read, flags])), norm.float().reshape(1).to(read)]).tolist()
    parts = dict(zip(names, numbers[1:], strict=False))
    is_empty = not any(len(ids) for ids in batches)
    is_good = math.isfinite(numbers[-1]) and (math.isfinite(numbers[0]) or is_empty)
    if is_good:
        prepared.optimizer.step()
    return Stepped(
        loss=parts.pop("loss"),
        total=numbers[0],
        gradient_norm=numbers[-1],
        rate=rate,
        parts=parts,
        stop=numbers[-3] > 0,
        save=numbers[-2] > 0,
        is_good=is_good,
    )


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
