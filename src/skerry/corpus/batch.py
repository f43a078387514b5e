"""One batch of token ids: what a model reads in one forward, and which of its places are measured."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Token ids of several independent inputs.

    Attributes:
        input_ids: Token ids.
        keep: False where the place is padding; padding is never measured.
        sample: Number of each independent input, counted over the whole corpus.
    """

    input_ids: Int[Tensor, "sample position"]
    keep: Bool[Tensor, "sample position"]
    sample: Int[Tensor, "sample"]

    @property
    def num_tokens(self) -> int:
        """Number of measured tokens."""
        return int(self.keep.sum())

    def behind(self, count: int) -> Batch:
        """The same inputs without their first `count` places."""
        if not count:
            return self
        return Batch(self.input_ids[:, count:], self.keep[:, count:], self.sample)
