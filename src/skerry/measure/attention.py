"""What each attention head does: where its weight goes, how sharp it is, how large its logits are.

    p_ij = exp(l_ij) / (sum_j exp(l_ij) + exp(sink))      over the keys j that query i can see
    received_k = sum_i p_ik      exposure_k = number of queries that can see key k      alpha_k = received_k / exposure_k

alpha is Gu et al. 2410.10781's; a key is a sink of an input when alpha > 0.3 and at least 8 queries can see it. Entropy is that of
the softmax, lse - sum p l; a learned sink logit is one more key in it, and in the entropy of uniform attention. Padding is neither
query nor key. Queries are taken in blocks, so no [sample, head, query, key] tensor of a whole input exists.
Limit: equal logits give alpha_k = mean over i >= k of 1/(i + 1) under a causal mask, and entropy = entropy_uniform.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skerry.anatomy.attention import AttentionView
from skerry.corpus.batch import Batch
from skerry.measure.accumulator import Columns, check_same, pack, prefixed, unpack
from skerry.measure.attention_fused import read_fused
from skerry.measure.attention_reading import AttentionReading, pool_logits, read_plain
from skerry.measure.places import Places, layout
from skerry.measure.tokens import TokenTable

SINK_SHARE = 0.3
"""A key that receives more than this share from the queries that see it is a sink (Gu et al. 2410.10781)."""
SINK_QUERIES = 8
"""Keys that fewer queries can see are never called sinks: under a causal mask the last key is seen by one."""


class AttentionResult(NamedTuple):
    """What a layer's accumulator says: columns under the names of the tables of a run, without layer and token text.

    Attributes:
        heads: Columns of `heads`, one row per query head.
        keys: Columns of `keys`, head by head, positions that were measured.
        key_tokens: Columns of `key_tokens`.
    """

    heads: Columns
    keys: Columns
    key_tokens: Columns


# Rows of `head_sums`.
_ENTROPY, _UNIFORM, _MAX_PROB, _SINK_MASS = range(4)


class AttentionStats:
    """Mergeable statistics of the attention of one layer."""

    def __init__(self, num_heads: int, num_kv_heads: int, max_positions: int) -> None:
        """Start empty.

        Args:
            num_heads: Query heads.
            num_kv_heads: Key/value heads; query head h reads key head h // (num_heads / num_kv_heads).
            max_positions: Room for so many positions; longer inputs make more.
        """
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.num_samples = np.zeros(1, np.int64)
        self.head_sums = np.zeros((4, num_heads))
        self.head_counts = np.zeros((2, num_heads), np.int64)  # query rows, not finite
        self.logit_count = np.zeros(num_heads, np.int64)
        self.logit_sums = np.zeros((4, num_heads))  # mean, M2, smallest, largest
        self.logit_sums[2:] = [[np.inf], [-np.inf]]
        self.key_sums = np.zeros((2, num_heads, max_positions))  # received, alpha
        self.key_counts = np.zeros((2, num_heads, max_positions), np.int64)  # exposure, sink
        self.value_norm = np.zeros((num_kv_heads, max_positions))
        self.position_counts = np.zeros((2, max_positions), np.int64)  # inputs, value vectors measured
        self.tokens = TokenTable(
            2, 3
        )  # received, sink heads; occurrences, inputs, exposure summed over heads

    def update(self, view: AttentionView, batch: Batch) -> None:
        """Read the attention of one layer in one forward.

        Args:
            view: The attention.
            batch: The inputs of the forward.
        """
        with torch.inference_mode():
            known = layout(batch)
            if not len(known.all):
                return
            reading = read_fused(view, known.keep) or read_plain(view, known.keep)
            self.head_sums += reading.sums
            self.head_counts += reading.counts
            pool_logits(self.logit_count, self.logit_sums, reading.logit_count, reading.logit_sums)
            norms = None if view.value is None else _norms(view.value)
            self._take_keys(reading, norms, known.keep, known.all)

    def _take_keys(self, r: AttentionReading, norms: np.ndarray | None, keep: np.ndarray, at: Places) -> None:
        """Add up by position and by token, over all inputs at once."""
        received, exposure = r.received, r.exposure
        if not at.is_left_aligned:  # positions count kept places: close the gaps
            order = np.argsort(~keep, axis=1, kind="stable")
            received, exposure = (np.take_along_axis(a, order[:, None], axis=2) for a in (received, exposure))
            norms = None if norms is None else np.take_along_axis(norms, order[:, None], axis=2)
            keep = np.take_along_axis(keep, order, axis=1)
        size = int(keep.any(0).sum())
        received, exposure, keep = received[:, :, :size], exposure[:, :, :size], keep[:, :size]
        self._grow(size)
        alpha = received / np.maximum(exposure, 1)
        is_sink = (alpha > SINK_SHARE) & (exposure >= SINK_QUERIES)
        self.num_samples += len(at.sample)
        self.key_sums[0, :, :size] += received.sum(0)
        self.key_sums[1, :, :size] += alpha.sum(0)
        self.key_counts[0, :, :size] += exposure.sum(0)
        self.key_counts[1, :, :size] += is_sink.sum(0)
        self.position_counts[0, :size] += keep.sum(0)
        if norms is not None:
            self.value_norm[:, :size] += (norms[:, :, :size] * keep[:, None]).sum(0)
            self.position_counts[1, :size] += keep.sum(0)
        index = at.tokens
        sums = [np.bincount(index.inverse, a.mean(1)[keep], len(index.ids)) for a in (received, is_sink)]
        seen = np.bincount(index.inverse, exposure.sum(1)[keep], len(index.ids)).astype(np.int64)
        counts = [index.count, index.num_samples, seen]
        self.tokens.add(index.ids, np.stack(sums, 1), np.stack(counts, 1))

    def _grow(self, size: int) -> None:
        more = size - self.position_counts.shape[1]
        if more > 0:
            for name in ("key_sums", "key_counts", "value_norm", "position_counts"):
                old = getattr(self, name)
                setattr(
                    self, name, np.concatenate([old, np.zeros((*old.shape[:-1], more), old.dtype)], axis=-1)
                )

    def merge(self, other: AttentionStats) -> None:
        """Take in what another accumulator of this layer has read.

        Raises:
            MergeMismatch: It has another number of heads.
        """
        check_same("attention statistics", self._settings(), other._settings())
        pool_logits(self.logit_count, self.logit_sums, other.logit_count, other.logit_sums)
        for name in ("num_samples", "head_sums", "head_counts"):
            getattr(self, name)[...] += getattr(other, name)
        size = other.position_counts.shape[1]
        self._grow(size)
        for name in ("key_sums", "key_counts", "value_norm", "position_counts"):
            getattr(self, name)[..., :size] += getattr(other, name)
        self.tokens.merge(other.tokens)

    def _settings(self) -> dict[str, object]:
        return {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}

    def result(self) -> AttentionResult:
        """The statistics of all that was read; NaN where nothing was."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return AttentionResult(self._heads(), self._keys(), self._key_tokens())

    def _kv_head(self) -> np.ndarray:
        return np.arange(self.num_heads) * self.num_kv_heads // self.num_heads

    def _heads(self) -> Columns:
        rows, kv = self.head_counts[0], self._kv_head()
        count = self.logit_count
        some = count > 0
        mean, m2, low, high = self.logit_sums
        return {
            "head": np.arange(self.num_heads),
            "kv_head": kv,
            "num_samples": np.full(self.num_heads, self.num_samples[0]),
            "num_queries": rows.copy(),
            "entropy": self.head_sums[_ENTROPY] / rows,
            "entropy_uniform": self.head_sums[_UNIFORM] / rows,
            "max_prob": self.head_sums[_MAX_PROB] / rows,
            "logit_min": np.where(some, low, np.nan),
            "logit_max": np.where(some, high, np.nan),
            "logit_mean": np.where(some, mean, np.nan),
            "logit_std": np.sqrt(m2 / count),
            "sink_logit_mass": self.head_sums[_SINK_MASS] / rows,
            "value_norm": (self.value_norm.sum(1) / self.position_counts[1].sum())[kv],
            "num_nonfinite": self.head_counts[1].copy(),
        }

    def _keys(self) -> Columns:
        seen = np.flatnonzero(self.position_counts[0])
        size = len(seen)
        per_head = {
            "received": self.key_sums[0][:, seen],
            "exposure": self.key_counts[0][:, seen].astype(np.float64),
            "alpha": self.key_sums[1][:, seen] / self.position_counts[0, seen],
            "sink": self.key_counts[1][:, seen],
            "value_norm": (self.value_norm[:, seen] / self.position_counts[1, seen])[self._kv_head()],
        }
        return {
            "head": np.repeat(np.arange(self.num_heads), size),
            "position": np.tile(seen, self.num_heads),
            "num_samples": np.tile(self.position_counts[0, seen], self.num_heads),
            **{name: values.ravel() for name, values in per_head.items()},
        }

    def _key_tokens(self) -> Columns:
        count, num_samples, exposure = self.tokens.counts.T
        return {
            "token_id": self.tokens.ids,
            "count": count,
            "num_samples": num_samples,
            "received": self.tokens.sums[:, 0],
            "exposure": exposure / self.num_heads,
            "sink_heads": self.tokens.sums[:, 1] / count,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        return pack({n: getattr(self, n) for n in _ARRAYS}) | prefixed("tokens.", self.tokens.state())

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> AttentionStats:
        """The accumulator that wrote `state`."""
        arrays = unpack(state)
        stats = cls(arrays["head_sums"].shape[1], *arrays["value_norm"].shape)
        for name in _ARRAYS:
            setattr(stats, name, arrays[name])
        stats.tokens.load({n.removeprefix("tokens."): t for n, t in state.items() if n.startswith("tokens.")})
        return stats

    def __repr__(self) -> str:
        return (
            f"<AttentionStats of {self.num_heads} heads: {self.head_counts[0].max()} query rows in "
            f"{self.num_samples[0]} samples; .result()>"
        )


_ARRAYS = (
    "num_samples",
    "head_sums",
    "head_counts",
    "logit_count",
    "logit_sums",
    "key_sums",
    "key_counts",
    "value_norm",
    "position_counts",
)


def _norms(value: Tensor) -> np.ndarray:
    """Euclidean norms [sample, kv_head, key] of the value vectors; 0 where one is not finite."""
    norms = torch.linalg.vector_norm((value.cpu() if value.device.type == "mps" else value).double(), dim=-1)
    return norms.nan_to_num(nan=0.0, posinf=0.0).cpu().numpy()
