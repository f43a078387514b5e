"""What a training would be, without training: sizes, tokens, memory, disk, and the time, from a few steps that are taken and thrown away."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from skerry.redesign.checkpointing import KEPT
from skerry.redesign.recipe import Recipe
from skerry.redesign.train_check import check_recipe
from skerry.redesign.train_data import load_data
from skerry.redesign.train_devices import Devices
from skerry.redesign.train_folder import check_folder
from skerry.redesign.train_setup import facts_of
from skerry.redesign.train_speed import Stepper

_STEPS = 3
_BYTES_PER_PARAMETER = 16
"""Weights, gradients and two moments in float32."""


def plan_training(
    recipe: Recipe,
    out: str | Path,
    *,
    device: Any = None,
    threads: int | None = None,
    save_every: int | None = None,
) -> dict[str, Any]:
    """Everything that can be known before; nothing is written.

    Args:
        recipe: What would be trained.
        out: Where; refused as `train` would refuse it.
        device: Chosen when None.
        threads: Chosen when None.
        save_every: Steps between two models that are kept.

    Raises:
        SkerryError: What `train` would refuse.
    """
    check_recipe(recipe)
    check_folder(Path(out), recipe)
    devices = Devices(device)
    data = load_data(recipe, None)
    before = torch.get_num_threads()
    stepper = Stepper(recipe, data, devices.device)
    facts = facts_of(recipe, data, stepper.session.model, devices, {}, threads)
    torch.set_num_threads(facts["threads"])
    try:
        first = stepper.seconds(1)
        seconds = statistics.median(stepper.seconds(1) for _ in range(_STEPS))
    finally:
        torch.set_num_threads(before)
    parts: dict[str, int] = {}
    for name, parameter in stepper.session.model.named_parameters():
        part = part_of(name)
        parts[part] = parts.get(part, 0) + parameter.numel()
    per_step = recipe.batch * recipe.accumulation * recipe.context
    checkpoints = recipe.steps // save_every if save_every else 0
    return {
        **facts,
        "parameters_by_part": parts,
        "tokens_per_step": per_step,
        "tokens": per_step * recipe.steps,
        "times_through_text": None if data.num_tokens is None else per_step * recipe.steps / data.num_tokens,
        "seconds_per_step": seconds,
        "seconds_first_step": first,
        "seconds": first + seconds * recipe.steps,
        "bytes_of_weights_and_moments": _BYTES_PER_PARAMETER * facts["parameters"],
        "bytes_on_disk": facts["parameters"] * (12 * KEPT + 4 * (checkpoints + 1)),
    }


def part_of(name: str) -> str:
    """Where a parameter belongs, by its name."""
    words = {
        "embed_tokens": "embedding",
        "lm_head": "head",
        "variant": "attention variant",
        "self_attn": "attention",
        "mlp": "feed-forward",
    }
    return next((part for word, part in words.items() if word in name), "norms")
