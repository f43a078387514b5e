"""Which inputs calibrate and which are scored, cut into batches without needless padding.

A range that was found on the inputs that are scored would look better than it is, so the first quarter of the inputs calibrates and the
rest is scored. Inputs of several lengths are sorted by length: padding costs a forward as much as text does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skerry.corpus.batch import Batch

CALIBRATION_SHARE = 0.25
MOST_CALIBRATION = 64
FEWEST_FOR_SPLIT = 8
# What is measured again and again (sites, clipping) is measured on so many inputs.
PRICED_INPUTS = 32
PRICED_TOKENS = 4096
FEWEST_PRICED = 16
TOKENS_AT_ONCE = 1024


class Split(NamedTuple):
    """Inputs by what they are for.

    Attributes:
        calibration: Ranges are found on them.
        scoring: The whole-model measures are taken on them.
        pricing: The first of those: what is measured for every site is measured on them.
        note: What the reader must know; None when nothing.
    """

    calibration: list[Batch]
    scoring: list[Batch]
    pricing: list[Batch]
    note: str | None


class _One(NamedTuple):
    ids: Int[Tensor, "position"]
    keep: Bool[Tensor, "position"]
    number: int


def split(batches: Iterable[Batch]) -> Split:
    """Cut the inputs of a run into those that calibrate and those that are scored; few inputs do both."""
    every = [
        _trimmed(b.input_ids[i], b.keep[i], int(b.sample[i]))
        for b in batches
        for i in range(len(b.input_ids))
    ]
    note, rest, first = None, every, every
    if len(every) >= FEWEST_FOR_SPLIT:
        cut = min(MOST_CALIBRATION, max(2, int(len(every) * CALIBRATION_SHARE)))
        first, rest = every[:cut], every[cut:]
    else:
        note = f"{len(every)} inputs are too few to keep some for calibration: ranges are found on the inputs that are scored"
    return Split(compact(first), compact(rest), compact(_some(rest)), note)


def _some(inputs: Sequence[_One]) -> list[_One]:
    chosen: list[_One] = []
    num_tokens = 0
    for one in inputs[:PRICED_INPUTS]:
        if len(chosen) >= FEWEST_PRICED and num_tokens + len(one.ids) > PRICED_TOKENS:
            break
        chosen.append(one)
        num_tokens += len(one.ids)
    return chosen


def _trimmed(ids: Tensor, keep: Tensor, number: int) -> _One:
    """Without the padding on the right; padding on the left moves positions, so it stays."""
    used = keep.nonzero()
    length = int(used[-1]) + 1 if len(used) else 1
    return _One(ids[:length], keep[:length], number)


def compact(inputs: Sequence[_One], *, tokens_at_once: int = TOKENS_AT_ONCE) -> list[Batch]:
    """Batches of inputs of about the same length, shortest first, padded on the right with the last id of each."""
    batches: list[Batch] = []
    group: list[_One] = []
    for one in sorted(inputs, key=lambda one: (len(one.ids), one.number)):
        if group and (len(group) + 1) * len(one.ids) > tokens_at_once:
            batches.append(_batch(group))
            group = []
        group.append(one)
    return [*batches, _batch(group)] if group else batches


def _batch(group: Sequence[_One]) -> Batch:
    length = max(len(one.ids) for one in group)
    ids = torch.stack([torch.cat([one.ids, one.ids[-1:].expand(length - len(one.ids))]) for one in group])
    keep = torch.zeros(len(group), length, dtype=torch.bool)
    for row, one in enumerate(group):
        keep[row, : len(one.ids)] = one.keep
    return Batch(ids, keep, torch.tensor([one.number for one in group]))
