"""Everything that is counted at one activation site, in one reading of each batch.

Per channel: range, moments, zeros, and in how many inputs it stands out. Per site: pooled shape, quantiles of |x| (sketch.py), the
largest values with their places. Optionally per position and token id. An input is never split between two updates, so what is
defined per input (its median channel, its kurtosis) is exact and partial results add up in any order.

Sketched are all values beyond 4 RMS of their token, and of the others, in activations of 256 channels or more, every eighth vector of
16 channels, at weight eight; which one moves on with the token's place, so no token and no channel is favoured. The tail is complete.
Medians of single tokens are taken of every eighth token there.

    rms_t = sqrt(mean_j x_tj^2)               near zero: |x_tj| < 0.1 rms_t
    m_sj  = max_t |x_tj| over input s         high at ratio r: m_sj >= r median_j m_sj (never where that median is 0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from skerry.corpus.batch import Batch
from skerry.measure.accumulator import (
    HIGH_RATIOS,
    Columns,
    check_same,
    median_of_rows,
    pack,
    prefixed,
    unpack,
)
from skerry.measure.activation_fused import read_fused
from skerry.measure.foremost import Foremost
from skerry.measure.moments import Moments
from skerry.measure.places import Places, places
from skerry.measure.reading import Reading, read_plain
from skerry.measure.sketch import QuantileSketch
from skerry.measure.tokens import TokenStats

NUM_NONFINITE_KEPT = 16
_VALUE_ORDER = ("value", "sample", "position", "channel")
_PLACE_ORDER = ("sample", "position", "channel")
# Rows of `per_sample`: counts of inputs by channel.
_SEEN, _TOP, _POSITIVE, _HIGH = 0, 1, 2, 3
# Entries of `totals` (sums over inputs or tokens) and of `counts`.
_OFT, _OSP, _MMR, _INF_NORM = range(4)
_SAMPLES, _TOKENS, _NAN, _OFT_N, _OSP_N, _MMR_N = range(6)


class ActivationResult(NamedTuple):
    """What a site's accumulator says: columns under the names of the tables of a run, without layer, site, expert and token text.

    Attributes:
        site: One row of `sites`.
        channels: Columns of `channels`.
        values: Columns of `values`.
        nonfinite: Columns of `nonfinite`; kind is "nan" or "inf".
        positions: Columns of `positions`; None when tokens were not asked for.
        tokens: Columns of `tokens`; None when tokens were not asked for.
    """

    site: Columns
    channels: Columns
    values: Columns
    nonfinite: Columns
    positions: Columns | None
    tokens: Columns | None


class ActivationStats:
    """Mergeable statistics of one activation site; about 124 bytes per channel."""

    def __init__(
        self, num_channels: int, top_k: int = 32, *, tokens: bool = False, token_median: bool | None = None
    ) -> None:
        """Start empty.

        Args:
            num_channels: Width of the activation.
            top_k: How many of the largest values to keep with their places.
            tokens: Whether to keep statistics by position and by token id.
            token_median: Whether to take the median of |x| of every token (for `max_to_median_token`); None: as `tokens`.
        """
        self.num_channels = num_channels
        self.top_k = top_k
        self.token_median = tokens if token_median is None else token_median
        self.moments = Moments.zeros(num_channels)
        self.range = np.repeat([[np.inf], [-np.inf]], num_channels, axis=1)
        self.value_counts = np.zeros((3, num_channels), np.int64)  # zero, near zero, not finite
        self.per_sample = np.zeros((3 + len(HIGH_RATIOS), num_channels), np.int32)
        self.abs_max_sum = np.zeros(num_channels)
        self.totals = np.zeros(4)
        self.counts = np.zeros(6, np.int64)
        self.sketch = QuantileSketch()
        self.largest = Foremost(top_k, _VALUE_ORDER, ("token_id",))
        self.nonfinite = Foremost(NUM_NONFINITE_KEPT, _PLACE_ORDER, ("kind",))
        self.tokens = TokenStats() if tokens else None

    @property
    def every(self) -> int:
        """One vector of 16 channels in so many is sketched."""
        return 8 if self.num_channels >= 256 else 1

    @property
    def num_top(self) -> int:
        """How many channels count as top."""
        return max(1, self.num_channels // 100)

    def update(self, x: Float[Tensor, "row channel"], rows: Int[Tensor, " row"] | None, batch: Batch) -> None:
        """Read one activation; padding is left out.

        Args:
            x: Rows of any float type and device.
            rows: Flat token number of each row, ascending; None when row r is token r of the batch.
            batch: The inputs of the forward; each of them is read whole, here and nowhere else.
        """
        at = places(batch, rows)
        if not len(at):
            return
        fused = read_fused(self, x, at)
        if fused is not None:
            self.sketch.add(fused.histogram, fused.first)
            self._locate(fused.largest, fused.nonfinite, at)
            if self.tokens is not None:
                self.tokens.add(at, fused.abs_max, fused.square)
            return
        reading = read_plain(
            x,
            at,
            bar=self.largest.bar(),
            top_k=self.top_k,
            nonfinite_k=NUM_NONFINITE_KEPT,
            token_median=self.token_median,
            every=self.every,
        )
        self._take_channels(reading)
        self._take_samples(reading)
        self._take_rows(reading, at)

    def _take_channels(self, r: Reading) -> None:
        self.moments.merge(r.moments)
        np.minimum(self.range[0], r.low.min(0), out=self.range[0])
        np.maximum(self.range[1], r.high.max(0), out=self.range[1])
        self.value_counts += [r.zero, r.near_zero, r.num_nonfinite]
        self.sketch.add(r.histogram)

    def _take_samples(self, r: Reading) -> None:
        """Count, for every channel, the inputs in which it stands out."""
        size = np.maximum(-r.low, r.high)
        seen = size >= 0  # -inf where nothing was measured
        median = median_of_rows(size, seen)
        positive = seen & (r.high >= -r.low) & (r.high > 0)
        order = np.argsort(-size, axis=1, kind="stable")[:, : self.num_top]
        top = np.zeros_like(seen)
        np.put_along_axis(top, order, True, axis=1)
        scale = np.where(median > 0, median, np.inf)[:, None]
        self.per_sample[_SEEN] += seen.sum(0, dtype=np.int32)
        self.per_sample[_TOP] += (top & seen).sum(0, dtype=np.int32)
        self.per_sample[_POSITIVE] += positive.sum(0, dtype=np.int32)
        for i, ratio in enumerate(HIGH_RATIOS):
            self.per_sample[_HIGH + i] += (size >= ratio * scale).sum(0, dtype=np.int32)
        self.abs_max_sum += np.where(seen, size, 0.0).sum(0)
        self.totals[_INF_NORM] += size.max(1, where=seen, initial=0.0).sum()

    def _take_rows(self, r: Reading, at: Places) -> None:
        oft = _sample_kurtosis(r.sample_sums, r.sample_count)
        osp = np.maximum(r.spread - 3, 0)
        for which, values in ((_OFT, oft), (_OSP, osp)):
            valid = np.isfinite(values)
            self.totals[which] += values[valid].sum()
            self.counts[_OFT_N if which == _OFT else _OSP_N] += valid.sum()
        if r.median is not None:
            valid = r.median > 0
            self.totals[_MMR] += (r.abs_max[valid] / r.median[valid]).sum(dtype=np.float64)
            self.counts[_MMR_N] += valid.sum()
        self.counts[_SAMPLES] += len(at.sample)
        self.counts[_TOKENS] += len(at)
        self.counts[_NAN] += r.num_nan
        self._locate(r.largest, r.nonfinite, at)
        if self.tokens is not None:
            self.tokens.add(at, r.abs_max, r.square)

    def _locate(self, largest: Triple, nonfinite: Triple, at: Places) -> None:
        value, place, channel = largest
        if len(value):
            self.largest.add(value=value, channel=channel, token_id=at.token_id[place], **_where(at, place))
        kind, place, channel = nonfinite
        if len(kind):
            self.nonfinite.add(kind=kind, channel=channel, **_where(at, place))

    def merge(self, other: ActivationStats) -> None:
        """Take in what another accumulator of this site has read.

        Raises:
            MergeMismatch: It has another width or other options.
        """
        check_same("activation statistics", self._settings(), other._settings())
        self.moments.merge(other.moments)
        np.minimum(self.range[0], other.range[0], out=self.range[0])
        np.maximum(self.range[1], other.range[1], out=self.range[1])
        for name in ("value_counts", "per_sample", "abs_max_sum", "totals", "counts"):
            getattr(self, name)[...] += getattr(other, name)
        self.sketch.merge(other.sketch)
        self.largest.merge(other.largest)
        self.nonfinite.merge(other.nonfinite)
        if self.tokens is not None and other.tokens is not None:
            self.tokens.merge(other.tokens)

    def _settings(self) -> dict[str, object]:
        return {
            "num_channels": self.num_channels,
            "top_k": self.top_k,
            "tokens": self.tokens is not None,
            "token_median": self.token_median,
        }

    def result(self) -> ActivationResult:
        """The statistics of all that was read; NaN where nothing was."""
        values = self.largest.columns
        missing = self.nonfinite.columns
        return ActivationResult(
            site=self._site(),
            channels=self._channels(),
            values={"rank": np.arange(len(self.largest)), **values},
            nonfinite={**missing, "kind": np.where(missing["kind"] == 0, "nan", "inf")},
            positions=None if self.tokens is None else self.tokens.positions.result(),
            tokens=None if self.tokens is None else self.tokens.tokens(),
        )

    def _site(self) -> Columns:
        pooled = self.moments.pooled()
        count = int(pooled.count[0])
        share = self.moments.mean_square
        share = share[np.isfinite(share)]
        low, high = (float(self.range[0].min()), float(self.range[1].max())) if count else (np.nan, np.nan)
        num = self.counts.tolist()
        quantiles = {"median": 0.5, "q99": 0.99, "q999": 0.999, "q9999": 0.9999}
        abs_max = max(-low, high)
        return {
            "num_samples": int(num[_SAMPLES]),
            "num_tokens": int(num[_TOKENS]),
            "num_channels": self.num_channels,
            **{
                name: min(self.sketch.result(q), abs_max) if count else np.nan
                for name, q in quantiles.items()
            },
            "min": low,
            "max": high,
            "abs_max": abs_max,
            "mean": float(pooled.mean[0]),
            "rms": float(np.sqrt(pooled.mean_square[0])),
            "kurtosis": float(pooled.kurtosis[0]),
            "kurtosis_channels": float((share**2).mean() / share.mean() ** 2) if share.any() else np.nan,
            "kurtosis_oft": _mean(self.totals[_OFT], num[_OFT_N]),
            "kurtosis_osp": _mean(self.totals[_OSP], num[_OSP_N]),
            "max_to_median_token": _mean(self.totals[_MMR], num[_MMR_N]),
            "max_inf_norm": _mean(self.totals[_INF_NORM], num[_SAMPLES]),
            "zero": _mean(float(self.value_counts[0].sum()), count),
            "near_zero": _mean(float(self.value_counts[1].sum()), count),
            "num_nan": int(num[_NAN]),
            "num_inf": int(self.value_counts[2].sum() - num[_NAN]),
        }

    def _channels(self) -> Columns:
        m = self.moments
        with np.errstate(divide="ignore", invalid="ignore"):
            zero, near_zero = self.value_counts[:2] / m.count
            abs_max_mean = self.abs_max_sum / self.per_sample[_SEEN]
        seen = m.count > 0
        return {
            "channel": np.arange(self.num_channels),
            "count": m.count.copy(),
            "num_samples": self.per_sample[_SEEN].astype(np.int64),
            "min": np.where(seen, self.range[0], np.nan),
            "max": np.where(seen, self.range[1], np.nan),
            "mean": m.mean,
            "std": np.sqrt(m.variance),
            "skewness": m.skewness,
            "kurtosis": m.kurtosis,
            "zero": zero,
            "near_zero": near_zero,
            "num_nonfinite": self.value_counts[2].copy(),
            "top": self.per_sample[_TOP].astype(np.int64),
            "top_k": np.full(self.num_channels, self.num_top),
            "positive": self.per_sample[_POSITIVE].astype(np.int64),
            "abs_max_mean": abs_max_mean,
            **{f"high_{r}": self.per_sample[_HIGH + i].astype(np.int64) for i, r in enumerate(HIGH_RATIOS)},
        }

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        settings = np.array(
            [self.num_channels, self.top_k, self.tokens is not None, self.token_median], np.int64
        )
        arrays = {
            "settings": settings,
            "moments.count": self.moments.count,
            "moments.sums": self.moments.sums,
            **{n: getattr(self, n) for n in _ARRAYS},
        }
        state = pack(arrays)
        state |= prefixed("sketch.", self.sketch.state())
        state |= prefixed("largest.", self.largest.state())
        state |= prefixed("nonfinite.", self.nonfinite.state())
        if self.tokens is not None:
            state |= prefixed("positions.", self.tokens.positions.state())
            state |= prefixed("tokens.", self.tokens.by_id.state())
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ActivationStats:
        """The accumulator that wrote `state`."""
        width, top_k, tokens, token_median = (int(v) for v in state["settings"])
        stats = cls(width, top_k, tokens=bool(tokens), token_median=bool(token_median))
        moments = unpack(state, "moments.")
        stats.moments = Moments(moments["count"], moments["sums"])
        for name in _ARRAYS:
            setattr(stats, name, state[name].numpy().copy())
        stats.sketch = QuantileSketch.from_state(_under("sketch.", state))
        stats.largest.load(_under("largest.", state))
        stats.nonfinite.load(_under("nonfinite.", state))
        if stats.tokens is not None:
            stats.tokens.positions.load(_under("positions.", state))
            stats.tokens.by_id.load(_under("tokens.", state))
        return stats

    def __repr__(self) -> str:
        return (
            f"<ActivationStats of {self.num_channels} channels: {self.counts[_TOKENS]} tokens in "
            f"{self.counts[_SAMPLES]} samples; .result()>"
        )


Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
_ARRAYS = ("range", "value_counts", "per_sample", "abs_max_sum", "totals", "counts")


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _where(at: Places, place: np.ndarray) -> dict[str, np.ndarray]:
    return {"sample": at.sample[at.which[place]], "position": at.position[place]}


def _mean(total: float, count: int) -> float:
    return float(total) / int(count) if count else float("nan")


def _sample_kurtosis(sums: np.ndarray, count: np.ndarray) -> np.ndarray:
    """m4 / s^4 of each input from its sums of x, x^2, x^3, x^4, [4, sample]; s is the unbiased standard deviation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, r2, r3, r4 = sums / count
        m2 = r2 - mean**2
        m4 = r4 - 4 * mean * r3 + 6 * mean**2 * r2 - 3 * mean**4
        s2 = m2 * count / (count - 1)
        return np.where((count > 1) & (s2 > 1e-12 * r2), m4 / s2**2, np.nan)
