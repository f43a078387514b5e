"""From a recipe to a decoder with random weights, an optimiser and a precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from skerry.choices import Choice
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.optimisers import optimiser
from skerry.redesign.recipe import Recipe


def make_model(recipe: Recipe, *, vocab_size: int, bos: int | None) -> DecoderForCausalLM:
    """A decoder in float32 with random weights; the caller has set the seed.

    Raises:
        UnknownOption: A choice or an option that does not exist.
    """
    config = DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        attention=recipe.attention,
        attention_options=dict(recipe.attention_options),
        norm=recipe.norm,
        norm_options=dict(recipe.norm_options),
        position=recipe.position,
        feed_forward=recipe.feed_forward,
        tie_word_embeddings=recipe.tied,
        bos_token_id=bos,
        eos_token_id=bos,
    )
    return DecoderForCausalLM(config)


def make_optimiser(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The optimiser of the recipe.

    Raises:
        UnknownOption: A name or an option that does not exist.
        MissingExtra: It comes from a library that is not installed.
    """
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in recipe.optimiser_options.items()
    }
    return optimiser(
        recipe.optimiser, model, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, **options
    )


def choose_precision(asked: str, device: torch.device) -> Choice[str]:
    """`bf16` or `fp32`, with the reason."""
    if asked != "auto":
        return Choice(asked, "asked for")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    if fast:
        return Choice("bf16", f"this {device.type} multiplies bfloat16 in hardware")
    return Choice("fp32", f"this {device.type} does not multiply bfloat16 in hardware")
