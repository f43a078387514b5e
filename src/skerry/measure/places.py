"""Which rows of an activation are measured, and where in the inputs they come from.

A position counts the kept places of its input from 0, so that padding on the left moves nothing.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from torch import Tensor

from skerry.corpus.batch import Batch


@dataclass(frozen=True)
class Places:
    """The measured rows of one activation, inputs one after the other.

    Attributes:
        sample: int64 [sample], global numbers of the inputs that have a row here.
        start: int64 [sample + 1], first measured row of each input, and their number.
        row: int64 [place], row of the activation.
        position: int64 [place], position in the input.
        token_id: int64 [place], token there.
        width: Columns of the batch, where the rows are the tokens of a batch; else None.
    """

    sample: np.ndarray
    start: np.ndarray
    row: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    width: int | None

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def length(self) -> np.ndarray:
        """int64 [sample], measured rows of each input."""
        return np.diff(self.start)

    @cached_property
    def common_length(self) -> int | None:
        """Rows per input where it is the same for all."""
        first = int(self.length[0]) if len(self.length) else 0
        return first if first and (self.length == first).all() else None

    @cached_property
    def is_left_aligned(self) -> bool:
        """Whether, for whole inputs, every position is the column of the batch: no padding on the left and no gap."""
        return self.width is not None and bool((self.row % self.width == self.position).all())

    @cached_property
    def which(self) -> np.ndarray:
        """int64 [place], index into `sample`."""
        return np.repeat(np.arange(len(self.sample)), self.length)

    @cached_property
    def tokens(self) -> TokenIndex:
        """The places by token id."""
        ids, inverse, count = np.unique(self.token_id, return_inverse=True, return_counts=True)
        pairs = np.unique(self.which * len(ids) + inverse) % max(1, len(ids))
        return TokenIndex(ids, inverse, count, np.bincount(pairs, minlength=len(ids)))


@dataclass(frozen=True)
class TokenIndex:
    """Places grouped by token id.

    Attributes:
        ids: int64 [id], the different token ids, ascending.
        inverse: int64 [place], index into `ids`.
        count: int64 [id], occurrences.
        num_samples: int64 [id], inputs in which the token occurs.
    """

    ids: np.ndarray
    inverse: np.ndarray
    count: np.ndarray
    num_samples: np.ndarray


class _Layout:
    """A batch on the host, with what all sites of it share."""

    def __init__(self, batch: Batch) -> None:
        self.keep = np.ascontiguousarray(batch.keep.cpu().numpy())
        self.token_id = batch.input_ids.cpu().numpy().astype(np.int64)
        self.sample = batch.sample.cpu().numpy().astype(np.int64)
        self.position = np.cumsum(self.keep, axis=1) - 1
        self.all = self.select(None)

    def select(self, rows: np.ndarray | None) -> Places:
        width = self.keep.shape[1]
        flat = np.arange(self.keep.size) if rows is None else rows
        kept = np.flatnonzero(self.keep.ravel()[flat])
        flat = flat[kept]
        count = np.bincount(flat // width, minlength=len(self.sample)) if width else np.zeros(0, np.int64)
        present = np.flatnonzero(count)
        return Places(
            sample=self.sample[present],
            start=np.concatenate([[0], np.cumsum(count[present])]).astype(np.int64),
            row=kept.astype(np.int64),
            position=self.position.ravel()[flat].astype(np.int64),
            token_id=self.token_id.ravel()[flat],
            width=width if rows is None else None,
        )


# All sites of a forward see the same batch: its layout is worked out once. A weak reference, so that nothing is kept alive.
_last: tuple[weakref.ref[Batch], _Layout] | None = None


def layout(batch: Batch) -> _Layout:
    """The host copy of a batch; the last one is remembered."""
    global _last
    remembered = _last
    if remembered is not None and remembered[0]() is batch:
        return remembered[1]
    made = _Layout(batch)
    _last = (weakref.ref(batch), made)
    return made


def places(batch: Batch, rows: Int[Tensor, " row"] | None = None) -> Places:
    """The measured rows of an activation.

    Args:
        batch: The inputs of the forward.
        rows: Flat token number of each row, ascending; None when row r is token r.
    """
    known = layout(batch)
    return known.all if rows is None else known.select(rows.cpu().numpy().astype(np.int64))
