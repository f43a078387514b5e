"""Refuses a recipe that cannot be meant before anything long begins: numbers, sizes that do not fit each other, names that do not exist."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from skerry.errors import UnknownOption, near_matches
from skerry.redesign.recipe import Recipe
from skerry.redesign.schedule import SCHEDULES
from skerry.redesign.train_data import BACKCOPY
from skerry.redesign.train_model import make_model, make_optimiser

PRECISIONS = ("auto", "bf16", "fp32")
_AT_LEAST_ONE = "layers width heads kv_heads inner steps batch accumulation vocabulary"
_SMALLEST_TOKENIZER = 257
"""The bytes and the beginning of sequence."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot be meant; the decoder and its optimiser are built without memory, so their own checks are made too.

    Raises:
        UnknownOption: With what was given, what is expected and, for names, what comes near.
        MissingExtra: The optimiser's library is not installed.
    """
    _check_numbers(recipe)
    _check_fit(recipe)
    _known("schedule", recipe.schedule, SCHEDULES)
    _known("precision", recipe.precision, PRECISIONS)
    with torch.device("meta"), torch.random.fork_rng([]):
        model = make_model(recipe, vocab_size=recipe.vocabulary, bos=0)
    make_optimiser(recipe, model)
    if recipe.objective:
        from skerry.redesign.objective_settings import read_settings

        read_settings(recipe.objective, compiled=recipe.compile, accumulation=recipe.accumulation)


def _check_numbers(recipe: Recipe) -> None:
    for name in _AT_LEAST_ONE.split():
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise UnknownOption(f"{name} is {value}; it must be at least 1")
    _within("context", recipe.context, 2, math.inf)
    _within("seed", recipe.seed, 0, 2**63 - 1)
    _within("held_out", recipe.held_out, 0, 1, open_ends=True)
    _within("learning_rate", recipe.learning_rate, 0, math.inf, open_ends=True)
    _within("warmup", recipe.warmup, 0, math.inf)
    _within("final", recipe.final, 0, 1)
    _within("decay_share", recipe.decay_share, 0, 1)
    _within("weight_decay", recipe.weight_decay, 0, math.inf)
    _within("clip", recipe.clip, 0, math.inf)


def _within(
    name: str, value: int | float, low: int | float, high: int | float, *, open_ends: bool = False
) -> None:
    inside = low < value < high if open_ends else low <= value <= high
    if not (inside and math.isfinite(value)):
        bounds = f"{'above' if open_ends else 'at least'} {low:g}"
        if math.isfinite(high):
            bounds += f" and {'below' if open_ends else 'at most'} {high:g}"
        raise UnknownOption(f"{name} is {value}; it must be {bounds}")


def _check_fit(recipe: Recipe) -> None:
    if recipe.width % recipe.heads:
        raise UnknownOption(
            f"a width of {recipe.width} cannot be shared by {recipe.heads} heads; it must be a multiple of them"
        )
    if recipe.position == "rope" and recipe.width // recipe.heads % 2:
        raise UnknownOption(
            f"heads of {recipe.width // recipe.heads} channels cannot be rotated in pairs; give width / heads an even number"
        )
    if recipe.kv_heads is not None and recipe.heads % recipe.kv_heads:
        raise UnknownOption(
            f"{recipe.heads} heads cannot share {recipe.kv_heads} key/value heads; heads must be a multiple of kv_heads"
        )
    if recipe.warmup > recipe.steps:
        raise UnknownOption(f"{recipe.warmup} steps of warm-up are more than all {recipe.steps} steps")
    text = None if recipe.text is None else Path(recipe.text).suffix
    trains_tokenizer = recipe.tokenizer is None and recipe.text != BACKCOPY and text not in (".npy", ".bin")
    if trains_tokenizer and recipe.vocabulary < _SMALLEST_TOKENIZER:
        raise UnknownOption(
            f"a tokenizer of {recipe.vocabulary} tokens has no room for the 256 bytes and the beginning of sequence; give at least {_SMALLEST_TOKENIZER}"
        )


def _known(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        near = near_matches(word, list(known))
        raise UnknownOption(
            f"there is no {what} {word!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(known)}"
        )
