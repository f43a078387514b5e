"""What linear maps read in calibration: the range of every channel, its mean size, and a sample of tokens; one pass over the text.

    low_j = min_t x_tj      high_j = max_t x_tj      max|x_j| = max(-low_j, high_j)      mean|x_j| = sum_t |x_tj| / num_rows

over the kept tokens. No activation is kept but the rows of `num_rows` tokens, drawn once for all maps, so that every search sees the same
text. A routed expert reads its own tokens. Limit: one token is its own range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.coarse import coarse
from skerry.anatomy.dense import Dense
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.pages import letting_go
from skerry.anatomy.quiet import quiet
from skerry.anatomy.seams import Seam
from skerry.anatomy.sites import Site
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, EmptyBatch, NotPossible
from skerry.impact.calibrate import check_finite
from skerry.impact.rows import RowEdit, Rows, change_rows
from skerry.measure.gram import input_of
from skerry.measure.sketch import QuantileSketch, histogram
from skerry.run import Progress, Silent
from skerry.tame.memory import sized

# Tokens that are run at once: products are at full speed, and what lies between them stays small.
TOKENS_AT_ONCE = 1024


class ChannelRange(NamedTuple):
    """Smallest and largest value of every channel."""

    low: Float[Tensor, "channel"]
    high: Float[Tensor, "channel"]

    @property
    def abs_max(self) -> Float[Tensor, "channel"]:
        """Largest |x| of every channel."""
        return torch.maximum(-self.low, self.high)

    @property
    def width(self) -> float:
        """Range of the whole tensor: largest - smallest value."""
        return float(self.high.max() - self.low.min())

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(torch.isfinite(self.low).all() & torch.isfinite(self.high).all())

    def changed(self, *, shift: Tensor | None = None, scale: Tensor | None = None) -> ChannelRange:
        """The range of (x - shift) / scale, one number per channel each."""
        low, high = self
        if shift is not None:
            low, high = low - shift, high - shift
        return ChannelRange(low, high) if scale is None else ChannelRange(low / scale, high / scale)

    def joined(self, other: ChannelRange) -> ChannelRange:
        """The range of both."""
        return ChannelRange(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


class Spike(NamedTuple):
    """The row that holds the largest |x|, and where it stood."""

    row: Float[Tensor, "channel"]
    sample: int
    position: int

    @property
    def value(self) -> float:
        """The largest |x|."""
        return float(self.row.abs().max())


@dataclass(frozen=True)
class Ask:
    """What a reading holds beside the range.

    Attributes:
        num_rows: Tokens whose rows are kept.
        mean: Mean |x| of every channel.
        sizes: Histogram of |x|.
        tokens: Extremes of every token.
        spike: The row with the largest |x|.
        coarse: Ranges need not be exact: products are computed with fewer digits where that is faster (see `anatomy/coarse.py`).
    """

    num_rows: int = 0
    mean: bool = False
    sizes: bool = False
    tokens: bool = False
    spike: bool = False
    coarse: bool = False


@dataclass(eq=False)
class Reading:
    """What one tensor was in calibration.

    Attributes:
        num_rows: Tokens read.
        range: Of every channel, float32 or wider; None before the first token.
        abs_sum: Sum of |x| of every channel, float64; None where it was not asked.
        pieces: Rows of the drawn tokens, batch by batch.
        sizes: Histogram of |x| over all channels; empty where it was not asked.
        token_low: Smallest value of every token, batch by batch.
        token_high: Largest.
        spike: The row with the largest |x|; None where it was not asked.
    """

    num_rows: int = 0
    range: ChannelRange | None = None
    abs_sum: Float[Tensor, "channel"] | None = None
    pieces: list[Float[Tensor, "row channel"]] = field(default_factory=list)
    sizes: QuantileSketch = field(default_factory=QuantileSketch)
    token_low: list[Float[Tensor, "row"]] = field(default_factory=list)
    token_high: list[Float[Tensor, "row"]] = field(default_factory=list)
    spike: Spike | None = None

    def update(
        self, x: Float[Tensor, "row channel"], ask: Ask, *, drawn: Tensor | None, places: Rows
    ) -> None:
        """Read the kept rows of a batch.

        Args:
            x: The rows.
            ask: What is kept of them.
            drawn: Numbers of the rows that are kept as they are; None for none.
            places: Where the rows stand.
        """
        if not len(x):
            return
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        here = ChannelRange(x.amin(0).to(wide), x.amax(0).to(wide))
        self.range = here if self.range is None else self.range.joined(here)
        self.num_rows += len(x)
        if ask.mean:
            total = x.abs().sum(0, dtype=wide).double()
            self.abs_sum = total if self.abs_sum is None else self.abs_sum + total
        if ask.sizes:
            self.sizes.add(histogram(x))
        if ask.tokens:
            self.token_low.append(x.amin(1).to(wide))
            self.token_high.append(x.amax(1).to(wide))
        if ask.spike and (self.spike is None or float(here.abs_max.max()) > self.spike.value):
            row = int(torch.maximum(x.amax(1), -x.amin(1)).argmax())
            self.spike = Spike(x[row].to(wide, copy=True), int(places.sample[row]), int(places.position[row]))
        if drawn is not None and len(drawn):
            self.pieces.append(x[drawn].to(wide, copy=True))

    @property
    def abs_mean(self) -> Float[Tensor, "channel"]:
        """Mean |x| of every channel."""
        assert self.abs_sum is not None
        return self.abs_sum / self.num_rows

    @property
    def rows(self) -> Float[Tensor, "row channel"]:
        """The rows of the drawn tokens that reached the map."""
        return torch.cat(self.pieces) if self.pieces else torch.zeros(0, 0)


def read_inputs(
    anatomy: Anatomy,
    maps: Iterable[Dense],
    batches: Sequence[Batch],
    ask: Ask = Ask(),
    *,
    seed: int = 0,
    progress: Progress | None = None,
    stage: str = "calibration",
) -> dict[str, Reading]:
    """Read what linear maps read, in one pass.

    Args:
        anatomy: The model; it is left as it is.
        maps: The maps. Maps that read the same tensor share one reading.
        batches: The text.
        ask: What is kept beside the ranges.
        seed: Of the tokens that are drawn.
        progress: Listener; a unit is a batch.
        stage: What it is called there.

    Returns:
        Name of the map to its reading.

    Raises:
        EmptyBatch: There is no text.
        BrokenModel: NaN or infinity in what a map reads; the input, the block and the map are named.
        NotPossible: The forward does not tell which row is which token.
    """
    if not sum(b.num_tokens for b in batches):
        raise EmptyBatch("calibration needs text: no token was given")
    by_input: dict[Site, Reading] = {}
    plan: dict[str, Reading] = {}
    first: dict[Dense, Reading] = {}
    for dense in maps:
        site = input_of(anatomy, dense)
        if site not in by_input:
            first[dense] = by_input[site] = Reading()
        plan[dense.name] = by_input[site]
    batches = [piece for b in batches for piece in sized([b], max(1, TOKENS_AT_ONCE // b.keep.shape[1]))]
    drawn = _draw(batches, ask.num_rows, seed)
    now: dict[str, Any] = {}
    order: list[Dense] = []

    def reader(dense: Dense, reading: Reading) -> RowEdit:
        def read(x: Tensor, places: Rows | None) -> Tensor:
            batch: Batch = now["batch"]
            kept, where = _kept(x, places, dense, batch)
            reading.update(kept, ask, drawn=_drawn(where, batch, now["drawn"]), places=where)
            if reading.range is not None and not reading.range.is_finite:
                _refuse(x, places, dense, batch)
            order.append(dense)
            if now["last"] is dense:
                raise _AllReadError
            return x

        return read

    listener = progress or Silent()
    listener.start(stage, len(batches), "batch")
    with quiet(anatomy.model), letting_go(anatomy.model), ExitStack() as stack:
        stack.enter_context(change_rows(anatomy, {d: reader(d, r) for d, r in first.items()}))
        if ask.coarse:
            stack.enter_context(coarse(anatomy))
        for batch, chosen in zip(batches, drawn, strict=True):
            now.update(batch=batch, drawn=chosen, last=_last(order))
            order.clear()
            with suppress(_AllReadError):
                run(anatomy, batch.input_ids, batch.keep)
            listener.advance()
    listener.done()
    return plan


class _AllReadError(Exception):
    """The last map has read; what follows need not be computed."""


def _last(order: Sequence[Dense]) -> Dense | None:
    """The map that read last in a forward, behind which others need not go; None where that may be another map the next time.

    Behind a down projection nothing is left that would take time.
    """
    if not order or order.count(order[-1]) > 1 or any(d.is_routed for d in order):
        return None
    if "w.down" in order[-1].pieces:
        return None
    return order[-1]


def _draw(batches: Sequence[Batch], num_rows: int, seed: int) -> list[Bool[Tensor, "place"] | None]:
    """Which places of every batch are drawn: `num_rows` of all kept ones."""
    if not num_rows:
        return [None] * len(batches)
    keep = torch.cat([b.keep.reshape(-1).cpu() for b in batches])
    kept = keep.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros_like(keep)
    chosen[kept[torch.randperm(len(kept), generator=generator)[:num_rows]]] = True
    return list(chosen.split([b.keep.numel() for b in batches]))


def _kept(x: Tensor, places: Rows | None, dense: Dense, batch: Batch) -> tuple[Tensor, Rows]:
    if places is None:
        raise NotPossible(
            f"{dense.name} reads {len(x)} rows for {batch.keep.numel()} tokens, and the forward does not tell which is which"
        )
    if bool(places.counts.all()):
        return x, places
    return x[places.counts], Rows(*(t[places.counts] for t in places))


def _drawn(places: Rows, batch: Batch, drawn: Tensor | None) -> Tensor | None:
    if drawn is None:
        return None
    hit = drawn.to(places.sample.device)[places.sample * batch.keep.shape[1] + places.position]
    return hit.nonzero()[:, 0]


def _refuse(x: Tensor, places: Rows | None, dense: Dense, batch: Batch) -> None:
    check_finite(x, places, dense, batch)
    raise BrokenModel(
        f"calibration met infinity: {dense.name} reads it at {dense.reads}; load the model in float32 (dtype='float32')"
    )


def seam_range(seam: Seam, readings: dict[str, Reading]) -> ChannelRange | None:
    """The range of a seam's tensor; None where no token reaches it."""
    found: ChannelRange | None = None
    for reading in _of(seam, readings):
        if reading.range is not None:
            found = reading.range if found is None else found.joined(reading.range)
    return found


def seam_abs_mean(seam: Seam, readings: dict[str, Reading]) -> Float[Tensor, "channel"]:
    """Mean |x| of every channel of a seam's tensor."""
    read = [r for r in _of(seam, readings) if r.abs_sum is not None]
    return torch.stack([r.abs_sum for r in read if r.abs_sum is not None]).sum(0) / sum(
        r.num_rows for r in read
    )


def _of(seam: Seam, readings: dict[str, Reading]) -> list[Reading]:
    """What the seam's readers read: the whole tensor where one of them reads it whole, else the tokens of all its experts."""
    whole = [d for d in seam.readers if not d.is_routed]
    chosen = whole[:1] or list(seam.readers)
    return list({id(r): r for r in (readings[d.name] for d in chosen)}.values())
