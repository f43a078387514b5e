"""The inputs that a spread is measured on, and which of their tokens carry an outlier that is alive in a block.

A carrier is alive at `attn.in` of block i when it was born in an earlier block and no earlier block took it away: birth < i <= exit.
Blocks in which none is alive are measured at the tokens that carry one anywhere: what they were before, what they are after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.causes.carrier import Carrier, Places
from skerry.corpus.batch import Batch

# Inputs measured: intervals get no narrower that matter, and sums of vectors stay below 256 MB.
MOST_INPUTS = 256
_VECTORS = 2**26  # numbers of four bytes
# Outlier channels on fewer tokens than this share are bound to tokens, like a massive activation.
BOUND_SHARE = 0.25


@dataclass(frozen=True)
class Part:
    """Some inputs of one batch.

    Attributes:
        batch: They alone.
        inputs: Their numbers among all measured inputs.
        alive: Per block, which tokens carry an outlier.
        others: Tokens to compare with.
    """

    batch: Batch
    inputs: Int[Tensor, "sample"]
    alive: Sequence[Bool[Tensor, "sample position"]]
    others: Bool[Tensor, "sample position"]

    def rows(self, rows: Int[Tensor, "row"]) -> Part:
        """Some of the inputs."""
        masks = [mask[rows] for mask in self.alive]
        return Part(rows_of_batch(self.batch, rows), self.inputs[rows], masks, self.others[rows])


@dataclass(frozen=True)
class Text:
    """All inputs that are measured, in order.

    Attributes:
        parts: Some inputs of a batch each.
    """

    parts: Sequence[Part]

    @property
    def num_inputs(self) -> int:
        """How many there are."""
        return sum(len(p.inputs) for p in self.parts)

    def some(self, most: int) -> Iterator[Part]:
        """At most so many inputs, evenly over the text."""
        wanted = _even(torch.arange(self.num_inputs), most)
        for part in self.parts:
            rows = torch.isin(part.inputs, wanted).nonzero()[:, 0]
            if len(rows):
                yield part.rows(rows)


def _even(x: Tensor, most: int) -> Tensor:
    return x if len(x) <= most else x[torch.linspace(0, len(x) - 1, most).round().long()]


def rows_of_batch(batch: Batch, rows: Tensor) -> Batch:
    """Some inputs of a batch."""
    if len(rows) == len(batch.input_ids):
        return batch
    return Batch(batch.input_ids[rows], batch.keep[rows], batch.sample[rows])


def followed(carriers: Sequence[Carrier], batches: Sequence[Batch], places: Places) -> list[Carrier]:
    """Massive activations; without any, outlier channels in their order as long as all their tokens together are few."""
    massive = [c for c in carriers if c.kind == "massive activation"]
    if massive:
        return massive
    limit = BOUND_SHARE * sum(b.num_tokens for b in batches)
    chosen: list[Carrier] = []
    for carrier in carriers:
        numbers = [c.number for c in (*chosen, carrier)]
        own = sum(len(found.get(carrier.number, ())) for found in places.carried)
        if own and sum(len(places.any_of(i, numbers)) for i in range(len(places.carried))) < limit:
            chosen.append(carrier)
    return chosen


def is_alive(carrier: Carrier, layer: int) -> bool:
    """Whether attention of this block reads it."""
    born = -1 if carrier.birth_layer is None else carrier.birth_layer
    return born < layer and (carrier.exit_layer is None or layer <= carrier.exit_layer)


def measured_text(
    anatomy: Anatomy, batches: Sequence[Batch], carriers: Sequence[Carrier], places: Places
) -> Text:
    """The inputs with a token that carries one of these outliers; of very many, some evenly over the text."""
    dims = anatomy.dims
    numbers = frozenset(c.number for c in carriers)
    alive = [
        frozenset(c.number for c in carriers if is_alive(c, layer)) or numbers
        for layer in range(dims.num_layers)
    ]
    has = [_mask(b, places.any_of(i, sorted(numbers))).any(1).nonzero()[:, 0] for i, b in enumerate(batches)]
    num_inputs = sum(map(len, has))
    most = min(MOST_INPUTS, max(8, _VECTORS // max(1, 4 * dims.num_layers * dims.hidden)))
    chosen = _even(torch.arange(num_inputs), most)
    parts: list[Part] = []
    first = passed = 0
    for i, batch in enumerate(batches):
        rows = has[i][chosen[(chosen >= passed) & (chosen < passed + len(has[i]))] - passed]
        passed += len(has[i])
        if len(rows):
            masks = {found: _mask(batch, places.any_of(i, sorted(found)))[rows] for found in set(alive)}
            others = _mask(batch, places.others[i])[rows]
            inputs = torch.arange(first, first + len(rows))
            parts.append(Part(rows_of_batch(batch, rows), inputs, [masks[found] for found in alive], others))
            first += len(rows)
    return Text(parts)


def _mask(batch: Batch, tokens: Tensor) -> Bool[Tensor, "sample position"]:
    """Flat tokens of a batch as a mask; padding is never among them."""
    mask = torch.zeros(batch.keep.numel(), dtype=torch.bool)
    mask[tokens] = True
    return mask.reshape(batch.keep.shape) & batch.keep
