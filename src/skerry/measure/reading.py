"""What one batch says about one activation: the intermediate that the plain and the fused path both produce.

This file is the plain path, a few torch operations in float64 per group of inputs, on any device. It is the definition; the kernel in
kernels/stats.c must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.measure.accumulator import NEAR_ZERO
from skerry.measure.moments import Moments, pool
from skerry.measure.places import Places
from skerry.measure.sketch import histogram

# Values of float64 that the plain path has in hand at once.
_GROUP = 1 << 18
# Values beyond so many RMS of their token are all sketched.
_FAR = 4


@dataclass
class Reading:
    """Statistics of one batch at one site. Non-finite values are counted and located, and left out of all else.

    Attributes:
        moments: Of every channel.
        low: float [sample, channel], smallest value; inf where nothing was measured.
        high: float [sample, channel], largest value; -inf where nothing was measured.
        zero: int64 [channel], exact zeros.
        near_zero: int64 [channel], values below 0.1 x the RMS of their token.
        num_nonfinite: int64 [channel].
        sample_sums: float64 [4, sample], sums of x, x^2, x^3, x^4 over all of an input.
        sample_count: int64 [sample], finite values of an input.
        abs_max: float [place], largest |x| of each token.
        square: float64 [place], sum of squares of each token.
        spread: float64 [place], kurtosis of a token as Park et al. define it; NaN where it has none.
        histogram: int64 [bucket], see sketch.py.
        largest: value, place, channel of the largest |x|: at least those that can enter the list of the site.
        nonfinite: kind (0 NaN, 1 infinite), place, channel of the first ones of each input.
        median: float64 [place], median of |x| of each token, or None.
    """

    moments: Moments
    low: np.ndarray
    high: np.ndarray
    zero: np.ndarray
    near_zero: np.ndarray
    num_nonfinite: np.ndarray
    num_nan: int
    sample_sums: np.ndarray
    sample_count: np.ndarray
    abs_max: np.ndarray
    square: np.ndarray
    spread: np.ndarray
    histogram: np.ndarray
    largest: tuple[np.ndarray, np.ndarray, np.ndarray]
    nonfinite: tuple[np.ndarray, np.ndarray, np.ndarray]
    median: np.ndarray | None


def read_plain(
    x: Float[Tensor, "row channel"],
    at: Places,
    *,
    bar: float,
    top_k: int,
    nonfinite_k: int,
    token_median: bool,
    every: int,
) -> Reading:
    """Read the measured rows.

    Args:
        x: The activation.
        at: Its measured rows.
        bar: |value| that an entry must reach to count among the largest.
        top_k: How many of the largest are wanted.
        nonfinite_k: How many non-finite values to locate.
        token_median: Whether to take tokens' medians of |x|.
        every: Of the values near zero, one vector of 16 channels in so many is sketched; of the tokens, one in so many has its
            median taken.
    """
    ask = _Ask(bar, top_k, nonfinite_k, token_median, every)
    turn = at.sample[at.which] + at.position
    groups = [(first, _read_group(g, first, turn, ask)) for first, g in _groups(x, at)]
    return (
        groups[0][1]
        if len(groups) == 1
        else _join([r for _, r in groups], [int(at.which[f]) for f, _ in groups])
    )


class _Ask(NamedTuple):
    """The arguments of `read_plain`."""

    bar: float
    top_k: int
    nonfinite_k: int
    token_median: bool
    every: int


def _groups(x: Tensor, at: Places) -> Iterator[tuple[int, Tensor]]:
    """Float64 [sample, place, channel] of inputs of one length, or of a part of one input, with the number of their first place."""
    room = max(1, _GROUP // max(1, x.shape[1]))
    step = max(1, room // at.common_length) if at.common_length else 1
    # Apple's GPUs have no float64.
    device = "cpu" if x.device.type == "mps" else x.device
    for s in range(0, len(at.sample), step):
        stop = min(s + step, len(at.sample))
        begin, end = int(at.start[s]), int(at.start[stop])
        for first in range(begin, end, room if stop - s == 1 else end - begin):
            rows = at.row[first : min(end, first + room) if stop - s == 1 else end]
            if rows[-1] - rows[0] == len(rows) - 1:
                part = x[int(rows[0]) : int(rows[-1]) + 1]
            else:
                part = x[torch.from_numpy(rows).to(x.device)]
            yield first, part.to(device).double().reshape(stop - s, -1, x.shape[1])


def _read_group(g: Tensor, first: int, turn: np.ndarray, ask: _Ask) -> Reading:
    finite = torch.isfinite(g)
    bad = ~finite
    x = torch.where(finite, g, 0.0)
    size = x.abs()
    n = finite.sum(1)
    mean = x.sum(1) / n.clamp(min=1)
    c = torch.where(finite, x - mean[:, None], 0.0)
    c2 = c * c
    sums = torch.stack([mean, c2.sum(1), (c2 * c).sum(1), (c2 * c2).sum(1)], 1)
    x2 = x * x
    square, row_n = x2.sum(-1), finite.sum(-1)
    rms = (square / row_n.clamp(min=1)).sqrt()
    near = (size < NEAR_ZERO * rms[..., None]) & finite
    # Unbiased, as torch's std is: what the published code divides by.
    variance = (square - x.sum(-1) ** 2 / row_n) / (row_n - 1)
    place, channel, kind = _nonfinite(g, bad, ask.nonfinite_k)
    turns = torch.from_numpy(turn[first : first + square.numel()]).reshape(square.shape).to(g.device)
    value, big_place, big_channel = _largest(x, torch.where(finite, size, -1.0), max(ask.bar, 0.0), ask.top_k)
    return Reading(
        moments=pool(n.cpu().numpy(), sums.cpu().numpy()),
        low=torch.where(finite, g, torch.inf).amin(1).cpu().numpy(),
        high=torch.where(finite, g, -torch.inf).amax(1).cpu().numpy(),
        zero=((x == 0) & finite).sum((0, 1)).cpu().numpy(),
        near_zero=near.sum((0, 1)).cpu().numpy(),
        num_nonfinite=bad.sum((0, 1)).cpu().numpy(),
        num_nan=int(torch.isnan(g).sum()),
        sample_sums=torch.stack([(x**k).sum((1, 2)) for k in (1, 2, 3, 4)]).cpu().numpy(),
        sample_count=n.sum(1).cpu().numpy(),
        abs_max=size.amax(-1).flatten().cpu().numpy(),
        square=square.flatten().cpu().numpy(),
        spread=torch.where(
            variance > 1e-12 * square / row_n, (x2 * x2).sum(-1) / row_n / variance**2, torch.nan
        )
        .flatten()
        .cpu()
        .numpy(),
        histogram=_sketch(g, size, rms, turns, ask.every),
        largest=(value, big_place + first, big_channel),
        nonfinite=(kind, place + first, channel),
        median=_medians(size, finite, turns, ask.every) if ask.token_median else None,
    )


def _sketch(g: Tensor, size: Tensor, rms: Tensor, turns: Tensor, every: int) -> np.ndarray:
    far = size > _FAR * rms[..., None]
    vector = torch.arange(g.shape[-1], device=g.device) // 16
    near = ~far & ((vector + turns[..., None]) % every == 0)
    return every * histogram(g[near]) + histogram(g[far])


def _medians(size: Tensor, finite: Tensor, turns: Tensor, every: int) -> np.ndarray:
    asked = turns % every == 0
    medians = torch.full(turns.shape, torch.nan, dtype=size.dtype, device=size.device)
    if bool(asked.any()):
        medians[asked] = torch.where(finite, size, torch.nan)[asked].nanquantile(0.5, dim=-1)
    return medians.flatten().cpu().numpy()


def _nonfinite(g: Tensor, bad: Tensor, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not bool(bad.any()):
        return (np.zeros(0, np.int64),) * 3
    found = bad.nonzero().cpu().numpy()
    found = found[_rank_in_group(found[:, 0]) < limit]
    kind = torch.isinf(g[tuple(torch.from_numpy(found.T.copy()).to(g.device))]).cpu().numpy().astype(np.int64)
    return found[:, 0] * g.shape[1] + found[:, 1], found[:, 2], kind


def _largest(x: Tensor, size: Tensor, bar: float, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries that can be among the `limit` largest; among equals the first `limit` of each input are enough."""
    flat = size.flatten()
    k = min(limit, flat.numel())
    if not k:
        return np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    bar = max(bar, float(flat.topk(k).values[-1]))
    found = (size >= bar).nonzero().cpu().numpy()
    value = x[size >= bar].cpu().numpy()
    equal = np.abs(value) == bar
    enough = ~equal
    enough[equal] = _rank_in_group(found[equal, 0]) < limit
    found, value = found[enough], value[enough]
    return value, found[:, 0] * x.shape[1] + found[:, 1], found[:, 2]


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal numbers; `group` ascends."""
    _, start, length = np.unique(group, return_index=True, return_counts=True)
    return np.arange(len(group)) - np.repeat(start, length)


def _join(parts: list[Reading], samples: list[int]) -> Reading:
    """Readings of one batch as one; those of the same input, by number of their first, lie side by side."""
    # Several parts may belong to one input; a part of several inputs shares none of them.
    index = np.concatenate([s + np.arange(len(p.low)) for s, p in zip(samples, parts, strict=True)])
    start = np.flatnonzero(np.diff(index, prepend=-1))

    def cat(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts])

    def total(name: str) -> np.ndarray:
        return np.sum([getattr(p, name) for p in parts], axis=0)

    def triple(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b, c = zip(*(getattr(p, name) for p in parts), strict=True)
        return np.concatenate(a), np.concatenate(b), np.concatenate(c)

    return Reading(
        moments=pool(np.stack([p.moments.count for p in parts]), np.stack([p.moments.sums for p in parts])),
        low=np.minimum.reduceat(cat("low"), start),
        high=np.maximum.reduceat(cat("high"), start),
        zero=total("zero"),
        near_zero=total("near_zero"),
        num_nonfinite=total("num_nonfinite"),
        num_nan=sum(p.num_nan for p in parts),
        sample_sums=np.add.reduceat(np.concatenate([p.sample_sums for p in parts], 1), start, axis=1),
        sample_count=np.add.reduceat(cat("sample_count"), start),
        abs_max=cat("abs_max"),
        square=cat("square"),
        spread=cat("spread"),
        histogram=total("histogram"),
        largest=triple("largest"),
        nonfinite=triple("nonfinite"),
        median=None if parts[0].median is None else cat("median"),
    )
