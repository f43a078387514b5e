"""Everything that a training depends on, as plain values: two trainings with one recipe on one machine give the same losses bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from skerry.errors import UnknownOption, near_matches


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, how.

    Attributes:
        text: Text file or folder, token file (.npy, .bin), `backcopy` for the synthetic task, or None for the built-in corpus.
        tokenizer: Folder or hub id of a tokenizer; None trains one on the text.
        vocabulary: Tokens of a tokenizer that is trained.
        context: Tokens per window, the beginning-of-sequence token included.
        held_out: Share of the text, at its end, that is never trained on.
        layers: Blocks.
        width: Channels of the residual stream.
        heads: Query heads.
        kv_heads: Key/value heads; as many as query heads when None.
        inner: Channels of the feed-forward; 2 2/3 of the width when None.
        attention: Attention variant.
        attention_options: Its options.
        norm: Normalisation.
        norm_options: Its options.
        position: How positions are told.
        feed_forward: Feed-forward layer.
        tied: Embedding and head are one matrix.
        optimiser: Optimiser.
        optimiser_options: Its options beside learning rate and weight decay.
        learning_rate: Peak.
        schedule: `cosine`, `wsd` (warm-up, stable, decay) or `constant`.
        warmup: Steps of warm-up.
        final: Learning rate at the end, of the peak.
        decay_share: For `wsd`: share of the steps, at the end, over which the rate falls.
        weight_decay: Of matrices.
        clip: Largest norm of the gradient; 0 for none.
        steps: Optimiser steps.
        batch: Windows per micro-batch.
        accumulation: Micro-batches per step.
        precision: `bf16` (autocast, float32 weights), `fp32`, or `auto`: bf16 where the hardware multiplies it faster.
        compile: Compile the model with torch.compile.
        seed: Of weights and windows.
        objective: What is added to the loss, and how strongly; empty for the loss alone.
    """

    text: str | None = None
    tokenizer: str | None = None
    vocabulary: int = 4096
    context: int = 128
    held_out: float = 0.05
    layers: int = 4
    width: int = 256
    heads: int = 8
    kv_heads: int | None = None
    inner: int | None = None
    attention: str = "softmax"
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    norm: str = "rmsnorm"
    norm_options: Mapping[str, Any] = field(default_factory=dict)
    position: str = "rope"
    feed_forward: str = "swiglu"
    tied: bool = True
    optimiser: str = "adamw"
    optimiser_options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup: int = 100
    final: float = 0.1
    decay_share: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    steps: int = 1000
    batch: int = 16
    accumulation: int = 1
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    objective: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Recipe:
        """From a JSON object; fields it lacks are at their defaults.

        Raises:
            UnknownOption: A field that a recipe does not have, or a value of another type.
        """
        known = [f.name for f in fields(cls)]
        for name in plain:
            if name not in known:
                near = near_matches(name, known)
                raise UnknownOption(
                    f"a recipe has no field {name!r}{f'; did you mean {near}?' if near else '.'} It has {', '.join(known)}"
                )
        try:
            return TypeAdapter(cls).validate_json(json.dumps(dict(plain)), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            field_name = ".".join(map(str, first["loc"]))
            raise UnknownOption(f"the recipe's {field_name} is {first['input']!r}: {first['msg']}") from error

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What another recipe, as a JSON object, has otherwise, in words; fields it lacks are at their defaults."""
        mine, default = _json(self.plain()), _json(Recipe().plain())
        found = [
            f"{name} is {other.get(name, default.get(name))!r} there and {mine[name]!r} here"
            for name in mine
            if other.get(name, default[name]) != mine[name]
        ]
        return found + [
            f"it has {name!r}, which is no field of a recipe" for name in other if name not in mine
        ]


def _json(plain: Mapping[str, Any]) -> dict[str, Any]:
    """As it is after a round through JSON: tuples are lists."""
    return dict(json.loads(json.dumps(plain)))
