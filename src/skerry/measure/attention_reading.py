"""One layer's attention, blocks of queries at a time: logits, softmax, and sums over them.

This file is the plain path in float64, on any device, and the definition; the kernel in kernels/stats.c must agree with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skerry.anatomy.attention import AttentionView

# An additive mask at or below this hides the key: models write finfo.min, -inf, -1e9 or -1e4; distance biases stay far above.
HIDDEN = -5000.0
# Logits that the plain path has in hand at once.
_BLOCK = 1 << 18


@dataclass
class AttentionReading:
    """Sums over the measured query rows of one batch.

    Attributes:
        sums: float64 [4, head]: entropy, entropy if uniform, largest weight, weight of the sink logit.
        counts: int64 [2, head]: query rows; NaN and +inf logits (their rows are left out).
        logit_count: int64 [head], visible logits.
        logit_sums: float64 [4, head]: mean, sum of squares about it, smallest, largest.
        received: float64 [sample, head, key].
        exposure: int64 [sample, head, key].
    """

    sums: np.ndarray
    counts: np.ndarray
    logit_count: np.ndarray
    logit_sums: np.ndarray
    received: np.ndarray
    exposure: np.ndarray

    @classmethod
    def empty(cls, num_samples: int, num_heads: int, num_keys: int) -> AttentionReading:
        """Nothing read yet."""
        return cls(
            sums=np.zeros((4, num_heads)),
            counts=np.zeros((2, num_heads), np.int64),
            logit_count=np.zeros(num_heads, np.int64),
            logit_sums=np.array([[0.0], [0.0], [np.inf], [-np.inf]]).repeat(num_heads, 1),
            received=np.zeros((num_samples, num_heads, num_keys)),
            exposure=np.zeros((num_samples, num_heads, num_keys), np.int64),
        )


def pool_logits(count: np.ndarray, sums: np.ndarray, more: np.ndarray, more_sums: np.ndarray) -> None:
    """Take the logits `more` into `count` and `sums`, in place; layout as in AttentionReading."""
    n, m = count.astype(float), more.astype(float)
    both = np.maximum(n + m, 1)
    distance = more_sums[0] - sums[0]
    sums[1] += more_sums[1] + distance**2 * n * m / both
    sums[0] += distance * m / both
    sums[2], sums[3] = np.minimum(sums[2], more_sums[2]), np.maximum(sums[3], more_sums[3])
    count += more


class Block(NamedTuple):
    """Logits of some queries of one input and which of them count.

    Attributes:
        logits: float64 [head, query, key].
        visible: bool, broadcasts to [head, query, key].
        sink: float64 [head, query], the sink's logit; None without.
    """

    logits: Tensor
    visible: Tensor
    sink: Tensor | None = None


def read_plain(view: AttentionView, keep: np.ndarray) -> AttentionReading:
    """Read one layer.

    Args:
        view: Its attention.
        keep: bool [sample, position], False where padding.
    """
    total = AttentionReading.empty(len(keep), view.num_heads, keep.shape[1])
    for b, kept in enumerate(keep):
        for block in _blocks(view, b, kept):
            _add_block(total, b, block, view.weights)
    return total


def _blocks(view: AttentionView, b: int, keep: np.ndarray) -> Iterator[Block]:
    source = view.logits if view.logits is not None else view.query
    assert source is not None, "an attention view has either logits or query and key"
    device = torch.device("cpu") if source.device.type == "mps" else source.device
    keys = torch.from_numpy(keep).to(device)
    queries = np.flatnonzero(keep)
    step = max(1, _BLOCK // (view.num_heads * len(keep)))
    for first in range(0, len(queries), step):
        rows = torch.from_numpy(queries[first : first + step]).to(device)
        logits, visible = _logits(view, b, rows, device)
        visible = visible & keys
        if view.is_causal:
            visible = visible & (torch.arange(len(keep), device=device) <= rows[:, None])
        yield Block(logits, visible, _sink(view.sink_logits, b, rows, device))


def _sink(sink: Tensor | None, b: int, rows: Tensor, device: torch.device) -> Tensor | None:
    """Logits [head, query] of a sink that has one per head, or one per sample, head and query."""
    if sink is None:
        return None
    chosen = sink[:, None].expand(-1, len(rows)) if sink.dim() == 1 else sink[b][:, rows.to(sink.device)]
    return chosen.detach().to(device).double()


def _logits(view: AttentionView, b: int, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scaled, capped and biased logits [head, query, key] in float64, and what the mask leaves visible."""
    if view.logits is not None:
        logits = view.logits[b][:, rows.to(view.logits.device)].to(device).double()
        return logits, ~(logits <= HIDDEN)
    assert view.query is not None and view.key is not None
    query = view.query[b][:, rows.to(view.query.device)].to(device).double()
    key = view.key[b].to(device).double()
    grouped = query.reshape(key.shape[0], -1, query.shape[-1])
    logits = (grouped @ key.transpose(1, 2)).reshape(view.num_heads, len(rows), -1) * view.scale
    if view.softcap is not None:
        logits = view.softcap * torch.tanh(logits / view.softcap)
    if view.mask is None:
        return logits, torch.ones(1, 1, logits.shape[-1], dtype=torch.bool, device=device)
    mask = mask_rows(view.mask, b, rows).to(device)
    if mask.dtype == torch.bool:
        return logits, mask
    return logits + mask.double(), mask > HIDDEN


def mask_rows(mask: Tensor, b: int, rows: Tensor) -> Tensor:
    """The part [head or 1, query or 1, key] of a mask that broadcasts to [sample, head, query, key]."""
    full = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    part = full[b if full.shape[0] > 1 else 0]
    return part if part.shape[1] == 1 else part[:, rows.to(part.device)]


Weigh = Callable[[Tensor], Tensor]


def _add_block(total: AttentionReading, b: int, block: Block, rule: Weigh | None) -> None:
    logits = block.logits
    visible = block.visible.expand_as(logits)
    broken = visible & (torch.isnan(logits) | torch.isposinf(logits))
    measured = visible.any(-1) & ~broken.any(-1)
    visible = visible & measured[..., None] & ~torch.isneginf(logits)
    seen = visible.sum(-1)
    measured = seen > 0
    shown = torch.where(visible, logits, -torch.inf)
    clean = torch.where(visible, logits, 0.0)
    zero = torch.zeros((), dtype=shown.dtype, device=shown.device)
    read = _softmax(shown, clean, block.sink, measured) if rule is None else _other_rule(shown, visible, rule)
    options = seen.double() + (block.sink is not None)
    rows = [read.entropy, options.clamp(min=1).log(), read.weights.amax(-1), read.sink_mass]
    total.sums += torch.stack([torch.where(measured, r, zero).sum(-1) for r in rows]).cpu().numpy()
    total.counts += torch.stack([measured.sum(-1), broken.sum((1, 2))]).cpu().numpy()
    total.received[b] += read.weights.sum(1).cpu().numpy()
    total.exposure[b] += visible.sum(1).cpu().numpy()
    top = shown.amax(-1)
    count = seen.sum(-1)
    mean = clean.sum((1, 2)) / count.clamp(min=1)
    m2 = torch.where(visible, logits - mean[:, None, None], zero).square().sum((1, 2))
    low = torch.where(visible, logits, torch.inf).amin((1, 2))
    sums = torch.stack([mean, m2, low, top.amax(-1)]).cpu().numpy()
    pool_logits(total.logit_count, total.logit_sums, count.cpu().numpy(), sums)


class Weights(NamedTuple):
    """What the queries of a block do with their keys.

    Attributes:
        weights: [head, query, key]; zero where hidden.
        entropy: [head, query], in nats.
        sink_mass: [head, query].
    """

    weights: Tensor
    entropy: Tensor
    sink_mass: Tensor


def _softmax(shown: Tensor, clean: Tensor, sink: Tensor | None, measured: Tensor) -> Weights:
    """Softmax over the keys and, where there is one, the sink; `shown` is -inf and `clean` zero where hidden."""
    lse = shown.logsumexp(-1)
    sink_mass = plogp = torch.zeros_like(lse)
    if sink is not None:
        lse = torch.logaddexp(lse, sink)
        sink_mass = torch.where(measured, (sink - lse).exp(), 0.0)
        # A sink that is switched off has no logit to add to the sum.
        plogp = torch.where(sink_mass > 0, sink_mass * sink, 0.0)
    lse = torch.where(measured, lse, 0.0)
    p = (shown - lse[..., None]).exp()
    return Weights(p, lse - (p * clean).sum(-1) - plogp, sink_mass)


def _other_rule(shown: Tensor, visible: Tensor, rule: Weigh) -> Weights:
    """Weights that need not sum to one: their entropy is that of their shares, 0 for a query that has none; no sink takes part."""
    weights = torch.where(visible, rule(shown).double(), 0.0)
    total = weights.sum(-1, keepdim=True)
    shares = torch.where(total > 0, weights / total, 0.0)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    return Weights(weights, entropy, torch.zeros_like(entropy))
