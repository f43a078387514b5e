"""From text to the tokens that a training reads: a byte-level BPE trained on it (or a given tokenizer), one array, random windows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = "<s>"


def train_tokenizer(
    documents: Sequence[str], *, vocabulary: int, context: int | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every input begins with the beginning-of-sequence token, id 0.

    Args:
        documents: The text.
        vocabulary: Number of tokens, 257 at least.
        context: Longest input, for who loads it later; nothing is cut.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(documents, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    more = {} if context is None else {"model_max_length": context}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=BOS, **more)


def tokenize(documents: Sequence[str], tokenizer: Any) -> np.ndarray:
    """All documents as one array of ids, an empty line between two."""
    ids = tokenizer("\n\n".join(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def window_batch(
    ids: np.ndarray, *, count: int, context: int, bos: int | None, seed: int, step: int
) -> Int[Tensor, "sample position"]:
    """Random windows of the text, a function of seed and step alone: a resumed training needs no state of the data.

    Args:
        ids: The text.
        count: Windows.
        context: Tokens per window, the beginning-of-sequence token included.
        bos: Its id; None for windows without one.
        seed: Of the training.
        step: Of the optimiser, or any other number that counts batches.
    """
    body = context - (bos is not None)
    draw = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = draw.integers(0, len(ids) - body + 1, size=count)
    rows = np.stack([ids[s : s + body] for s in starts]).astype(np.int64)
    if bos is not None:
        rows = np.concatenate([np.full((count, 1), bos), rows], axis=1)
    return torch.from_numpy(rows)
