"""Batches ready for a model, and the card that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Bool, Int32
from torch import Tensor

from skerry.corpus.batch import Batch


@dataclass(frozen=True)
class CorpusCard:
    """What was fed to the model; stored in the run and printed in the report.

    Attributes:
        name: The corpus, as the report calls it.
        num_samples: Independent inputs.
        tokens_per_sample: Length of the longest sample, special tokens included.
        num_tokens: Measured tokens of all samples: padding is not counted.
        bos: What begins a sample and why, in words.
        packing: How samples were cut, in words.
        seed: The seed that chose the samples; None where nothing was chosen.
        num_documents: Documents of the text; None without text.
        num_characters: Characters of the text; None without text.
        text_sha256: SHA-256 of the text; None without text.
        ids_sha256: SHA-256 of the token ids and of what is kept, sample by sample; the same whatever the batch size.
        notes: What differs from what was asked, in words.
    """

    name: str
    num_samples: int
    tokens_per_sample: int
    num_tokens: int
    bos: str
    packing: str
    seed: int | None
    num_documents: int | None
    num_characters: int | None
    text_sha256: str | None
    ids_sha256: str
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The card as plain values for JSON."""
        return {**asdict(self), "notes": list(self.notes)}

    def __str__(self) -> str:
        text = (
            f", {self.num_characters:,} characters, sha256 {self.text_sha256[:12]}"
            if self.text_sha256
            else ""
        )
        return f"{self.name}{text}: {self.num_samples:,} samples of {self.tokens_per_sample:,} tokens; {self.bos}"


class Block(NamedTuple):
    """Token ids of one batch, at four bytes each; `keep` is None where nothing is padding."""

    ids: Int32[Tensor, "sample position"]
    keep: Bool[Tensor, "sample position"] | None


class Feed(Sequence[Batch]):
    """A sequence of batches that can be read again and again; `card` says what they are.

    Ids are kept at four bytes each and become a `Batch` when it is asked for, so a feed of a million tokens takes 4 MB.
    """

    def __init__(self, blocks: Sequence[Block], card: CorpusCard) -> None:
        self.card = card
        self._blocks = list(blocks)
        starts = [0]
        for block in self._blocks:
            starts.append(starts[-1] + len(block.ids))
        self._starts = starts

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        ids, keep = self._blocks[index]
        numbers = torch.arange(self._starts[index], self._starts[index + 1])
        return Batch(ids.long(), torch.ones_like(ids, dtype=torch.bool) if keep is None else keep, numbers)

    def __repr__(self) -> str:
        return f"<Feed of {len(self)} batches: {self.card}; iterate to get Batch objects>"


def ids_digest(blocks: Sequence[Block]) -> str:
    """SHA-256 over the kept ids of every sample with their number: independent of padding and of the batch size."""
    digest = hashlib.sha256()
    for ids, keep in blocks:
        for row in range(len(ids)):
            kept = ids[row] if keep is None else ids[row][keep[row]]
            digest.update(len(kept).to_bytes(8, "little"))
            digest.update(kept.contiguous().numpy().tobytes())
    return digest.hexdigest()
