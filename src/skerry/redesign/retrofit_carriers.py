"""Massive activations that are left when the first token is gone: born in a down projection, they can be taken out there.

A channel of the residual stream counts when at the output of a block max |x| >= ratio x median |x|; its tokens and the block of its birth
are those of `skerry.causes.carriers_life`. Where the feed-forward writes most of it, the row w of that channel in the block's down
projection is fitted anew: with x_t what the projection reads, over ordinary tokens O and the carrier's tokens C,

    d = argmin  mean_O (d.x_t)^2 + mean_C (d.x_t - (m - w.x_t))^2 + ridge |d|^2,       w <- w + d,      m = mean_O w.x_t

so that the carrier's tokens get what others get there, and others keep what they have as far as that goes. Then the text is read again:
another block may write it now. What attention or the embedding writes is left alone and named.
Limit: tokens of C whose x is orthogonal to all x of O lose their activation and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.quiet import quiet
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.carriers_life import MASSIVE, Channel, Life
from skerry.causes.carriers_read import Words, read_course
from skerry.corpus.batch import Batch

RATIO = 50.0
ROUNDS = 6
MOST_CHANNELS = 8
# A carrier of more tokens than this is a channel that all tokens have, not a massive activation.
FEW = 0.1
RIDGE = 1e-3
Row = dict[str, Any]


@dataclass(frozen=True)
class Loud:
    """A channel that stands out.

    Attributes:
        channel: Of the residual stream.
        layers: Blocks behind which it does.
        ratio: Largest max |x| / median |x|.
    """

    channel: int
    layers: frozenset[int]
    ratio: float


@torch.no_grad()
def loud_channels(anatomy: Anatomy, batches: Sequence[Batch], ratio: float | int = RATIO) -> list[Loud]:
    """Channels whose largest value is `ratio` x the median of the place or more, behind any block; loudest first.

    Args:
        anatomy: The model.
        batches: The text.
        ratio: From which a channel counts.
    """
    tops: dict[int, Tensor] = {}
    medians: dict[int, list[float]] = {}
    keep: list[Tensor] = []

    def look(site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if site.part == "resid.out" and site.layer is not None:
            size = x[keep[-1].to(x.device)].abs().float()
            top = size.amax(0)
            tops[site.layer] = torch.maximum(tops[site.layer], top) if site.layer in tops else top
            medians.setdefault(site.layer, []).append(float(size.median()))

    with quiet(anatomy.model), watch(anatomy, ("resid.out",), on_activation=look):
        for batch in batches:
            keep.append(batch.keep.reshape(-1))
            run(anatomy, batch.input_ids, batch.keep)
    found: dict[int, dict[int, float]] = {}
    for layer, top in tops.items():
        scaled = top / max(float(np.mean(medians[layer])), 1e-30)
        for channel in (scaled >= ratio).nonzero()[:, 0].tolist():
            found.setdefault(channel, {})[layer] = float(scaled[channel])
    every = [Loud(c, frozenset(at), max(at.values())) for c, at in found.items()]
    return sorted(every, key=lambda loud: (-loud.ratio, loud.channel))


def remove_carriers(
    anatomy: Anatomy, batches: Sequence[Batch], *, ratio: float | int = RATIO, rounds: int = ROUNDS
) -> tuple[list[Row], list[str]]:
    """Take massive activations out of the residual stream; the down projections of the model are changed in place.

    Args:
        anatomy: The model.
        batches: Calibration.
        ratio: From which a channel counts.
        rounds: How often the text is read again at most.

    Returns:
        One row per row that was fitted anew, and what was left alone, in words.
    """
    words, rows, notes = Words.of(batches), [], dict[str, None]()
    left: set[int] = set()
    for number in range(rounds):
        loud = [c for c in loud_channels(anatomy, batches, ratio) if c.channel not in left][:MOST_CHANNELS]
        if not loud:
            break
        course = read_course(anatomy, batches, words, [c.channel for c in loud])
        changed = False
        for index, one in enumerate(loud):
            life = Channel(MASSIVE, words, course, index).life(set(one.layers))
            why = _why_not(anatomy, one, life, len(words.flat), course.values, index)
            if why is not None or life is None:
                left.add(one.channel)
                notes[f"channel {one.channel} ({one.ratio:.0f} x the median) stays: {why}"] = None
                continue
            assert life.birth_layer is not None
            dense = _down(anatomy, life.birth_layer)
            assert dense is not None
            step = refit_row(anatomy, dense, one.channel, batches, carried(batches, words, life))
            changed = True
            rows.append(
                {
                    "round": number + 1,
                    "channel": one.channel,
                    "layer": life.birth_layer,
                    "ratio": one.ratio,
                    "num_tokens": len(life.bearers.rows),
                    "row_change": step,
                }
            )
        if not changed:
            break
    return rows, list(notes)


def _why_not(
    anatomy: Anatomy,
    loud: Loud,
    life: Life | None,
    num_tokens: int,
    values: dict[Site, np.ndarray],
    index: int,
) -> str | None:
    if life is None:
        return "no token carries it when the text is read again"
    if len(life.bearers.rows) > FEW * num_tokens:
        return f"{len(life.bearers.rows)} of {num_tokens} tokens carry it, so it is a channel and no massive activation"
    if life.birth_layer is None:
        return "the embedding brings it"
    layer, rows, sign = life.birth_layer, life.bearers.rows, life.bearers.sign
    before, middle, after = (
        sign * float(np.nan_to_num(values[site][rows, index]).mean()) if site in values else None
        for site in (
            Site(layer, "resid.in") if layer == 0 else Site(layer - 1, "resid.out"),
            Site(layer, "resid.mid"),
            Site(layer, "resid.out"),
        )
    )
    if middle is None or after is None or before is None or after - middle < (after - before) / 2:
        return f"attention of block {layer} writes most of it"
    return (
        None if _down(anatomy, layer) is not None else f"block {layer} has no down projection for all tokens"
    )


def _down(anatomy: Anatomy, layer: int) -> Dense | None:
    found = [d for d in dense_maps(anatomy) if d.layer == layer and "w.down" in d.pieces and not d.is_routed]
    return found[0] if len(found) == 1 else None


def carried(batches: Sequence[Batch], words: Words, life: Life) -> list[Bool[Tensor, "token"]]:
    """Per batch, flat: whether a token carries it."""
    masks = [torch.zeros(b.keep.numel(), dtype=torch.bool) for b in batches]
    for row in life.bearers.rows:
        masks[int(words.batch[row])][int(words.flat[row])] = True
    return masks


@torch.no_grad()
def refit_row(
    anatomy: Anatomy,
    dense: Dense,
    channel: int,
    batches: Sequence[Batch],
    masks: Sequence[Bool[Tensor, "token"]],
) -> float:
    """Fit one row of a down projection anew, in place; returns |d| / |w|.

    Args:
        anatomy: The model.
        dense: The down projection.
        channel: Its row.
        batches: Calibration.
        masks: Per batch, flat: the carrier's tokens.
    """
    plain, other = _Moments(), _Moments()
    number = -1

    def look(site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if site == dense.reads:
            keep = batches[number].keep.reshape(-1).to(x.device)
            mask = masks[number].to(x.device)
            plain.add(x[keep & ~mask])
            other.add(x[keep & mask])

    with quiet(anatomy.model), watch(anatomy, (dense.reads.part,), on_activation=look):
        for number, batch in enumerate(batches):  # noqa: B007
            run(anatomy, batch.input_ids, batch.keep)
    weight = dense.weight[channel].double()
    usual = weight @ plain.mean()
    gram = plain.second() + other.second()
    # mean_C x (m - w.x)
    pull = other.mean() * usual - other.second() @ weight
    ridge = RIDGE * plain.second().diagonal().mean().clamp_min(1e-12)
    step = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), pull)
    dense.weight[channel] += step.to(dense.weight)
    return float(step.norm() / weight.norm().clamp_min(1e-30))


class _Moments:
    """Sum of x and of x x^T over tokens, float64."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def add(self, x: Float[Tensor, "row column"]) -> None:
        """Take tokens in."""
        wide = x.double()
        first, second = wide.sum(0), wide.T @ wide
        self.count += len(x)
        self._first = first if self._first is None else self._first + first
        self._second = second if self._second is None else self._second + second

    def mean(self) -> Float[Tensor, "column"]:
        """Mean of x."""
        assert self._first is not None
        return self._first / max(1, self.count)

    def second(self) -> Float[Tensor, "column column"]:
        """Mean of x x^T."""
        assert self._second is not None
        return self._second / max(1, self.count)
