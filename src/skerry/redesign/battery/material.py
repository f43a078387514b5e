"""What the tasks are made of: ids to draw from, special tokens in front, windows of text. A function of the seed alone.

Two models with the same tokenizer, length and seed read the very same inputs; each score carries a digest of its own.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from skerry.corpus import Corpus, batches, from_tensors, read
from skerry.corpus.special import wrapping
from skerry.errors import BadTokens, UnknownOption
from skerry.redesign.battery.subject import Subject

# With fewer different ids in the text than this, ids are drawn from the whole vocabulary.
FEWEST_IDS = 64
MOST_TOKENS = 4096


@dataclass(frozen=True)
class Material:
    """Inputs for all tasks.

    Attributes:
        pool: Ids that tasks draw from: those of the text, without special ones.
        prefix: Special tokens that begin every input.
        text: Windows of text with the prefix; None without text.
        text_is: What the text is, in words.
        num_inputs: Inputs per task.
        seed: Of everything that is drawn.
        room: Most tokens of an input of a task: the training length.
        ends: Ids that end a text.
    """

    pool: Int[np.ndarray, "id"]
    prefix: tuple[int, ...]
    text: Int[Tensor, "sample position"] | None
    text_is: str
    num_inputs: int
    seed: int
    room: int
    ends: frozenset[int] = frozenset()

    def generator(self, task: str) -> np.random.Generator:
        """Random numbers of one task: what another task draws does not move them."""
        return np.random.default_rng([self.seed, zlib.crc32(task.encode())])

    def begun(self, body: Int[np.ndarray, "sample drawn"]) -> Int[Tensor, "sample position"]:
        """Inputs with the prefix in front."""
        first = np.tile(np.asarray(self.prefix, np.int64), (len(body), 1))
        return torch.from_numpy(np.concatenate([first, body.astype(np.int64)], axis=1))


def digest(*parts: Tensor | np.ndarray) -> str:
    """Of token ids and of what is asked about them."""
    sha = hashlib.sha256()
    for part in parts:
        array = np.ascontiguousarray(np.asarray(part), dtype=np.int64)
        sha.update(repr(array.shape).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def make_material(
    subject: Subject,
    tokenizer: Any = None,
    *,
    text: Any = None,
    held_out: float | None = None,
    inputs: int = 64,
    stretch: int = 4,
    longest: int = MOST_TOKENS,
    seed: int = 0,
    bos: str = "auto",
) -> Material:
    """Cut the text and choose the ids.

    Args:
        subject: The model.
        tokenizer: Its tokenizer; None where there is none.
        text: A corpus, a path or text; or token ids `[sample position]`, or one stream of them; the built-in corpus by default.
        held_out: Read only this share of the text, at its end.
        inputs: Inputs per task.
        stretch: Windows of text are so many training lengths long, where the model can read them.
        longest: But at most so many tokens.
        seed: Chooses windows and ids.
        bos: `auto`, `with` or `without`.

    Raises:
        UnknownOption: A number that cannot be meant.
        BadTokens: Ids that the model does not know, or too few to draw from.
        BadText: Less text than one window.
    """
    if inputs < 2:
        raise UnknownOption(f"inputs={inputs}: an interval needs at least 2")
    if held_out is not None and not 0 < held_out <= 1:
        raise UnknownOption(f"held_out={held_out}: it is a share of the text, above 0 and at most 1")
    if stretch < 1:
        raise UnknownOption(f"stretch={stretch}: windows are at least one training length long")
    want = min(subject.length * (1 if subject.is_limited else stretch), longest)
    prefix = () if tokenizer is None else wrapping(tokenizer, bos).prefix
    windows, what = None, "no text: the model has no tokenizer and no token ids were given"
    if text is not None and not isinstance(text, (str, Path, Corpus)):
        windows = _of_ids(text, subject, prefix, inputs=inputs, length=want, held_out=held_out, seed=seed)
        what = f"{len(windows)} windows of token ids given by the caller"
    elif tokenizer is not None:
        corpus = _end_of(text if isinstance(text, Corpus) else read(text), held_out)
        feed = batches(
            corpus,
            tokenizer,
            samples=inputs,
            tokens=want,
            batch_size=inputs,
            seed=seed,
            bos=bos,
            vocab_size=subject.vocab,
        )
        windows, what = torch.cat([b.input_ids for b in feed]), feed.card.name
        if feed.card.num_samples < inputs:
            what += f" ({feed.card.num_samples} of the {inputs} windows asked for)"
    special = _special(subject, tokenizer)
    return Material(
        pool=_pool(subject, tokenizer, windows, special),
        prefix=prefix,
        text=windows,
        text_is=what,
        num_inputs=inputs,
        seed=seed,
        room=min(subject.length, longest),
        ends=frozenset(_ids_of(getattr(subject.model, "config", None), ("eos_token_id",))),
    )


def _end_of(corpus: Corpus, share: float | None) -> Corpus:
    """The last share of a text, by characters."""
    if share is None or share == 1:
        return corpus
    left = int(corpus.num_characters * share)
    kept: list[str] = []
    for document in reversed(corpus.documents):
        if left <= 0:
            break
        kept.append(document[-left:])
        left -= len(kept[-1])
    return Corpus(f"the last {share:.0%} of {corpus.name}", tuple(reversed(kept)), corpus.notes)


def _of_ids(
    ids: Any,
    subject: Subject,
    prefix: tuple[int, ...],
    *,
    inputs: int,
    length: int,
    held_out: float | None,
    seed: int,
) -> Int[Tensor, "sample position"]:
    """Windows of ids: of a stream, drawn without overlap and begun with the prefix; of inputs, the first ones as they are."""
    array = np.asarray(ids)
    if array.ndim == 1:
        array = array[-int(len(array) * held_out) :] if held_out else array
        body = length - len(prefix)
        count = len(array) // body if body > 0 else 0
        if not count:
            raise BadTokens(f"{len(array):,} token ids: one window takes {body:,}; give more of them")
        chosen = np.random.default_rng(seed).permutation(count)[:inputs]
        rows = np.stack([array[i * body : (i + 1) * body] for i in chosen]).astype(np.int64)
        array = np.concatenate([np.tile(np.asarray(prefix, np.int64), (len(rows), 1)), rows], axis=1)
    feed = from_tensors(torch.from_numpy(array.astype(np.int64)), vocab_size=subject.vocab, samples=inputs)
    return torch.cat([b.input_ids for b in feed])[:, :length]


def _special(subject: Subject, tokenizer: Any) -> set[int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
    found = set(_ids_of(getattr(subject.model, "config", None), names))
    return found | set(map(int, getattr(tokenizer, "all_special_ids", None) or ()))


def _ids_of(config: Any, names: Iterable[str]) -> Iterable[int]:
    for name in names:
        value = getattr(config, name, None)
        yield from (int(v) for v in (value if isinstance(value, (list, tuple)) else [value]) if v is not None)


def _pool(
    subject: Subject, tokenizer: Any, windows: Tensor | None, special: set[int]
) -> Int[np.ndarray, "id"]:
    """Ids that the text uses, else all: rows of an embedding that no text ever trained would test nothing but luck."""
    size = subject.vocab if tokenizer is None else min(subject.vocab, len(tokenizer))
    barred = np.asarray(sorted(special), np.int64)
    every = np.setdiff1d(np.arange(size, dtype=np.int64), barred)
    if len(every) < 2:
        raise BadTokens(
            f"a vocabulary of {size} ids without {len(special)} special ones leaves nothing to draw from"
        )
    if windows is None:
        return every
    used = np.intersect1d(np.unique(windows.numpy()), every)
    return used if len(used) >= FEWEST_IDS else every
