"""Grow a small decoder on Bigram-Backcopy and read it as it grows: minutes on one core.

An arm is one attention and one optimiser; everything else is equal. The rate warms up and stays, as in Guo et al. 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch

from skerry.redesign.backcopy import Backcopy, builtin_task
from skerry.redesign.backcopy_reading import Reading, read_backcopy
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM, next_token_loss
from skerry.redesign.optimisers import optimiser

_HELD_OUT = 2**31  # training steps never come this far


@dataclass(frozen=True)
class Arm:
    """What differs between trainings.

    Attributes:
        name: In tables.
        attention: Variant.
        optimiser: Name.
        lr: Peak rate; None for the optimiser's default.
        attention_options: Of the variant.
        optimiser_options: Of the optimiser.
    """

    name: str
    attention: str = "softmax"
    optimiser: str = "adamw"
    lr: float | None = None
    attention_options: dict[str, Any] = field(default_factory=dict)
    optimiser_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Size:
    """What is equal in all arms; the defaults are the preset.

    Attributes:
        layers: Blocks.
        width: Channels of the residual stream; the one head is as wide.
        length: Tokens per sequence.
        samples: Sequences per step.
        steps: Steps of training.
        warmup: Steps in which the rate rises from 0.
        weight_decay: Of matrices.
        read_every: Steps between two readings.
        read_samples: Sequences of a reading, the same in all of them.
    """

    layers: int = 1
    width: int = 64
    length: int = 64
    samples: int = 64
    steps: int = 2000
    warmup: int = 50
    weight_decay: float = 1e-4
    read_every: int = 250
    read_samples: int = 64


class Point(NamedTuple):
    """A reading and when it was taken.

    Attributes:
        step: Steps done before it.
        reading: What was read.
    """

    step: int
    reading: Reading


class Grown(NamedTuple):
    """A trained decoder.

    Attributes:
        model: As it is after the last step.
        points: Readings, from before the first step to after the last.
    """

    model: DecoderForCausalLM
    points: list[Point]


def make_decoder(arm: Arm, size: Size, task: Backcopy, *, seed: int) -> DecoderForCausalLM:
    """A decoder with one head, its head not tied to its embedding; weights from the seed."""
    config = DecoderConfig(
        vocab_size=task.vocab_size,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=1,
        max_position_embeddings=size.length,
        tie_word_embeddings=False,
        attention=arm.attention,
        attention_options=arm.attention_options,
        bos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DecoderForCausalLM(config)


def grow(
    arm: Arm,
    size: Size | None = None,
    *,
    seed: int = 0,
    task: Backcopy | None = None,
    told: Callable[[Point], None] | None = None,
) -> Grown:
    """Train one arm with one seed, which rules weights and data; the same seed gives the same numbers.

    Args:
        arm: Attention and optimiser.
        size: Everything else.
        seed: Of weights and data.
        task: The built-in corpus's by default.
        told: Called with every reading as it comes.

    Raises:
        UnknownOption: An attention, an optimiser or an option of theirs that does not exist.
    """
    size, task = size or Size(), task or builtin_task()
    model = make_decoder(arm, size, task, seed=seed).train()
    optimizer = optimiser(
        arm.optimiser, model, lr=arm.lr, weight_decay=size.weight_decay, **arm.optimiser_options
    )
    peak = optimizer.param_groups[0]["lr"]
    held_out = task.batch(seed, _HELD_OUT, samples=size.read_samples, length=size.length)
    points: list[Point] = []
    for step in range(size.steps + 1):
        if step % size.read_every == 0 or step == size.steps:
            points.append(Point(step, read_backcopy(model, held_out, task)))
            if told is not None:
                told(points[-1])
        if step == size.steps:
            break
        ids = task.batch(seed, step, samples=size.samples, length=size.length)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / size.warmup)
        optimizer.zero_grad(set_to_none=True)
        next_token_loss(model(ids, use_cache=False).logits, ids).backward()
        optimizer.step()
    return Grown(model, points)


def flat_rows(arm: Arm, size: Size, seed: int, points: list[Point]) -> list[dict[str, Any]]:
    """One row per reading and layer, for tables."""
    return [
        {
            "arm": arm.name,
            "seed": seed,
            "step": point.step,
            **{f"size_{k}": v for k, v in asdict(size).items() if k in ("layers", "width", "length")},
            "backcopy_excess": point.reading.excess.backcopy,
            "bigram_excess": point.reading.excess.bigram,
            **layer._asdict(),
        }
        for point in points
        for layer in point.reading.layers
    ]
