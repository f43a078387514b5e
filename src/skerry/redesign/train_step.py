"""One optimiser step: micro-batches forward and backward, the norm of the gradient clipped, the rate of the schedule.

    g = (1/A) sum_a grad L(micro-batch a);   g <- g min(1, c / (|g| + 1e-6));   optimiser step at rate lr factor(t)

The loss and the norm are read before the optimiser moves: a value that is not finite stops the training while the weights are still those that
made it, so the first bad site can be found (`train_diverged.py`). That is one wait for the device per step, with the next batch already drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from skerry.redesign.recipe import Recipe
from skerry.redesign.schedule import factor


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
    """

    loss: float
    gradient_norm: float
    rate: float
    parts: dict[str, float]


def gradients(
    model: nn.Module,
    batches: list[Int[Tensor, "sample position"]],
    *,
    objective: Loss,
    autocast: torch.autocast,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Backward through all micro-batches; the mean loss and the mean parts, without graph."""
    total: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for ids in batches:
        with autocast:
            loss, parts = objective.loss(model, ids)
        (loss / len(batches) if len(batches) > 1 else loss).backward()
        total = loss.detach() if total is None else total + loss.detach()
        for name, value in parts.items():
            value = torch.as_tensor(value).detach()
            sums[name] = sums[name] + value if name in sums else value
    assert total is not None
    count = len(batches)
    return total / count, {name: value / count for name, value in sums.items()}


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients to a norm of at most `largest` (0: leave them), and return the norm that they had."""
    if largest > 0:
        return nn.utils.clip_grad_norm_(parameters, largest)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


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
