"""What a training reads: batches that are a function of the step alone, and held-out windows that are never trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from skerry.corpus import read
from skerry.errors import BadText, BadTokens, UnknownOption
from skerry.redesign.backcopy import Backcopy, builtin_task
from skerry.redesign.recipe import Recipe
from skerry.redesign.text import tokenize, train_tokenizer, window_batch
from skerry.redesign.token_files import check_ids, is_token_file, open_tokens, tokens_key

BACKCOPY = "backcopy"
HELD_OUT = 64
"""Windows that the held-out loss is measured on, at most."""
_FAR = 2**31  # a step that no training comes to


Draw = Callable[..., Tensor]


@runtime_checkable
class Data(Protocol):
    """Batches for a training."""

    @property
    def name(self) -> str:
        """In words."""

    @property
    def key(self) -> str:
        """SHA-256 of what is read."""

    @property
    def num_tokens(self) -> int | None:
        """To train on; None without an end."""

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""

    @property
    def bos(self) -> int | None:
        """Id that every window begins with; None for none."""

    @property
    def tokenizer(self) -> Any:
        """Of transformers; None for data without text."""

    def batch(self, number: int, draw: Draw | None = None) -> Int[Tensor, "sample position"]:
        """The micro-batch of that number; `draw` as `window_batch`, where the objective asks for another."""

    def held_out(self) -> Int[Tensor, "sample position"]:
        """Windows never trained on."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Random windows of one array of ids; the rest as in `Data`."""

    name: str
    key: str
    train: np.ndarray
    rest: np.ndarray
    vocab_size: int
    bos: int | None
    tokenizer: Any
    recipe: Recipe

    @property
    def num_tokens(self) -> int:
        """Tokens to train on."""
        return len(self.train)

    def batch(self, number: int, draw: Draw | None = None) -> Int[Tensor, "sample position"]:
        """Windows drawn by the recipe's seed and this number."""
        r = self.recipe
        return (draw or window_batch)(
            self.train, count=r.batch, context=r.context, bos=self.bos, seed=r.seed, step=number
        )

    def held_out(self) -> Int[Tensor, "sample position"]:
        """Windows spread evenly over the held-out text, the same for every seed."""
        body = self.recipe.context - (self.bos is not None)
        count = min(HELD_OUT, len(self.rest) // body)
        starts = np.linspace(0, len(self.rest) - body, count).astype(int)
        rows = np.stack([self.rest[s : s + body] for s in starts]).astype(np.int64)
        if self.bos is not None:
            rows = np.concatenate([np.full((count, 1), self.bos), rows], axis=1)
        return torch.from_numpy(rows)


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Bigram-Backcopy; the rest as in `Data`."""

    task: Backcopy
    recipe: Recipe
    name: str = "Bigram-Backcopy"
    key: str = "backcopy"
    num_tokens: int | None = None
    bos: int | None = 0
    tokenizer: Any = None

    @property
    def vocab_size(self) -> int:
        """Characters and the beginning-of-sequence token."""
        return self.task.vocab_size

    def batch(self, number: int, draw: Draw | None = None) -> Int[Tensor, "sample position"]:
        """Sequences drawn by the recipe's seed and this number."""
        r = self.recipe
        return self.task.batch(r.seed, number, samples=r.batch, length=r.context)

    def held_out(self) -> Int[Tensor, "sample position"]:
        """Sequences of a number that no training comes to, the same for every seed."""
        return self.task.batch(0, _FAR, samples=HELD_OUT, length=self.recipe.context)


def load_data(recipe: Recipe, kept: Path | None) -> Data:
    """Open what the recipe trains on.

    Args:
        recipe: Names text and tokenizer.
        kept: Folder of this training's tokenizer, read when it is there, so that a training that goes on has the very same.

    Raises:
        BadText: Not found, empty, too short.
        BadTokens: Ids or a tokenizer that the vocabulary has no room for.
    """
    if recipe.text == BACKCOPY:
        return Synthetic(builtin_task(), recipe)
    tokenizer: Any
    if is_token_file(recipe.text):
        assert recipe.text is not None
        ids = open_tokens(recipe.text)
        tokenizer = None if recipe.tokenizer is None else _given(recipe)
        check_ids(ids, recipe.vocabulary, recipe.text)
        name, key = str(recipe.text), tokens_key(ids)
    else:
        corpus = read(recipe.text)
        name, key = corpus.name, corpus.sha256
        if kept is not None and kept.is_dir():
            tokenizer = _read_tokenizer(str(kept))
        elif recipe.tokenizer is not None:
            tokenizer = _given(recipe)
        else:
            tokenizer = train_tokenizer(
                corpus.documents, vocabulary=recipe.vocabulary, context=recipe.context
            )
        ids = tokenize(corpus.documents, tokenizer)
    split = int(len(ids) * (1 - recipe.held_out))
    _check_length(ids, split, recipe, name)
    bos = None if tokenizer is None else tokenizer.bos_token_id
    return Windows(name, key, ids[:split], ids[split:], recipe.vocabulary, bos, tokenizer, recipe)


def _given(recipe: Recipe) -> Any:
    tokenizer = _read_tokenizer(str(recipe.tokenizer))
    if len(tokenizer) > recipe.vocabulary:
        raise BadTokens(
            f"the tokenizer {recipe.tokenizer} has {len(tokenizer)} tokens and the vocabulary {recipe.vocabulary}; "
            f"give a vocabulary of at least {len(tokenizer)}"
        )
    return tokenizer


def _read_tokenizer(place: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UnknownOption(f"no tokenizer can be read from {place!r}: {first}") from error


def _check_length(ids: np.ndarray, split: int, recipe: Recipe, name: str) -> None:
    batch = recipe.batch * recipe.context
    if split < batch:
        raise BadText(
            f"{name} has {split:,} tokens to train on and one batch reads {batch:,} ({recipe.batch} windows of {recipe.context}); "
            "give more text, a smaller batch or a shorter context"
        )
    if len(ids) - split < recipe.context:
        raise BadText(
            f"{recipe.held_out:.0%} of {name} are {len(ids) - split:,} tokens, less than one held-out window of {recipe.context}; "
            "give more text or a larger share to hold out"
        )
