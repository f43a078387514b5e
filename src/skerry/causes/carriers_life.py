"""The life of one channel of the residual stream: who carries it, and between which blocks.

With v the channel's value times its usual sign, t_s the largest v of input s, and m the median |x| of a place of the stream:

    P          median of t_s over the inputs with t_s >= max t / 4: how far it typically reaches
    threshold  massive activation: 10 median |v|, but at least P / 4 and at most P / 2
               outlier channel:    8 m, but at least P / 4 and at most P
    token      carries it when v >= threshold at resid.out of the peak block
    peak       block, among those where the scan found it, after which the mean of v over its tokens is largest
    birth      the unbroken stretch that ends at the peak, of places with half of what follows, begins at the first place with
               v / m >= 8 and >= 1/8 of that of the peak; for a massive activation also v >= 10 times the mean |x| that other tokens have
               in the channel there (both never more than half of what the peak has)
    exit       first block after the peak with |v_out| <= |v_in| / 2 and |v| < |v_peak| / 2 from there to the end, of v and of v / m
    cancellation  -(v_out - v_in) / v_in of the exit block, of means over the tokens

Birth is in units of m because a post-norm encoder normalises the stream in every block: its absolute values in two blocks have different
gains. For the same reason an end must show in both units: a norm that shrinks everything takes nothing away, nor do other channels that
grow. An eighth lets growth over several blocks begin at the block where it first stands out.
Limit: without noise (all other values 0) any value is infinitely far out, and birth is the first block that writes more than 1/8 of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from skerry.anatomy.sites import Site
from skerry.causes.carrier import CarrierKind
from skerry.causes.carriers_read import Course, Words

MASSIVE: CarrierKind = "massive activation"
ABOVE_CHANNEL, ABOVE_MEDIAN = 10.0, 8.0
"""Times what other tokens have in the channel (massive activations); times the median |x| of the place."""
PART_OF_PEAK, HALF = 1 / 8, 0.5


class Bearers(NamedTuple):
    """Which tokens carry a channel at one place of the stream.

    Attributes:
        sign: 1 or -1.
        threshold: |value| from which a token carries it.
        reach: P, how far it typically reaches.
        rows: int64 [row], the tokens, as rows of `Words`.
    """

    sign: int
    threshold: float
    reach: float
    rows: np.ndarray


@dataclass(frozen=True)
class Life:
    """One channel's life.

    Attributes:
        bearers: Its tokens, at the peak.
        birth_layer: Block, None for the embedding.
        peak_layer: Block.
        exit_layer: Block, None when it stays.
        peak: Mean signed value at the peak.
        ratio: |peak| / median |x| there.
        cancellation: Of the exit block; None without one.
    """

    bearers: Bearers
    birth_layer: int | None
    peak_layer: int
    exit_layer: int | None
    peak: float
    ratio: float
    cancellation: float | None


class Channel:
    """One candidate channel of a course."""

    def __init__(self, kind: CarrierKind, words: Words, course: Course, index: int) -> None:
        self.kind, self.words, self.course = kind, words, course
        self.values = {site: np.nan_to_num(x[:, index]) for site, x in course.values.items()}

    def bearers(self, site: Site) -> Bearers:
        """The tokens that carry it at one place."""
        v, starts = self.values[site], self.words.starts
        top, bottom = np.maximum.reduceat(v, starts), np.minimum.reduceat(v, starts)
        extreme = np.where(top >= -bottom, top, bottom)
        votes = np.sign(extreme[np.abs(extreme) >= np.abs(extreme).max() / 4]).sum()
        sign = int(np.sign(votes)) or int(np.sign(extreme[np.abs(extreme).argmax()])) or 1
        highest = top if sign > 0 else -bottom
        reach = float(np.median(highest[highest >= highest.max() / 4]))
        if self.kind == MASSIVE:
            usual = ABOVE_CHANNEL * float(np.median(np.abs(v)))
            threshold = min(max(usual, reach / 4), reach / 2)
        else:
            threshold = min(max(ABOVE_MEDIAN * self.course.medians[site], reach / 4), reach)
        rows = np.flatnonzero(sign * v >= threshold) if threshold > 0 else np.zeros(0, np.int64)
        return Bearers(sign, threshold, reach, rows)

    def mean(self, site: Site, bearers: Bearers) -> float:
        """Mean of the value times the sign at its tokens."""
        return bearers.sign * float(self.values[site][bearers.rows].mean(dtype=np.float64))

    def life(self, found_in: set[int]) -> Life | None:
        """Its life, when the scan found it in these blocks; None when no token carries it."""
        outputs = [s for s in self.course.outputs if s.layer in found_in]
        if not outputs or not len(self.words.flat):
            return None
        bearers, peak = self._peak(outputs)
        if not len(bearers.rows):
            return None
        v = {site: self.mean(site, bearers) for site in self.course.stages}
        layer = -1 if peak.layer is None else peak.layer
        leaves = self._exit(v, peak)
        return Life(
            bearers,
            birth_layer=self._birth(v, peak, bearers),
            peak_layer=layer,
            exit_layer=None if leaves is None else leaves[0],
            peak=bearers.sign * v[peak],
            ratio=v[peak] / self.course.medians[peak] if self.course.medians[peak] > 0 else float("inf"),
            cancellation=None if leaves is None else leaves[1],
        )

    def _peak(self, outputs: list[Site]) -> tuple[Bearers, Site]:
        """The block where its tokens have most: found with the tokens of one block, until it is that block."""
        peak = max(outputs, key=lambda s: self.bearers(s).reach)
        for _ in range(3):
            bearers = self.bearers(peak)
            if not len(bearers.rows):
                break
            highest = max(outputs, key=lambda s: self.mean(s, bearers))
            if self.mean(highest, bearers) <= self.mean(peak, bearers):
                break
            peak = highest
        return self.bearers(peak), peak

    def _birth(self, v: dict[Site, float], peak: Site, bearers: Bearers) -> int | None:
        others = np.ones(len(self.words.flat), bool)
        others[bearers.rows] = False

        def measures(site: Site) -> np.ndarray:
            """How far out it is: in medians of the place, and in what other tokens have."""
            rest = np.abs(self.values[site][others])
            usual = rest.mean(dtype=np.float64) if self.kind == MASSIVE and len(rest) else 0.0
            scale = np.array([self.course.medians[site], usual])
            return np.where(scale > 0, v[site] / np.where(scale > 0, scale, 1.0), np.inf)

        top = measures(peak)
        bars = np.minimum(np.array([max(ABOVE_MEDIAN, PART_OF_PEAK * top[0]), ABOVE_CHANNEL]), HALF * top)
        stages = self.course.stages
        born = peak
        for site in reversed(stages[: stages.index(peak)]):
            reached = measures(site)
            if v[site] <= 0 or (reached < HALF * bars).any():
                break
            if (reached >= bars).all():
                born = site
        return None if born.part == "resid.in" else born.layer

    def _exit(self, v: dict[Site, float], peak: Site) -> tuple[int, float] | None:
        """The block that takes it away, and the share of it that goes."""
        outputs = self.course.outputs
        # [block output, unit]: in the model's units, and in medians of the place.
        scales = np.array([[1.0, max(self.course.medians[s], 1e-30)] for s in outputs])
        size = np.abs(np.array([v[s] for s in outputs]))[:, None] / scales
        for i in range(outputs.index(peak) + 1, len(outputs)):
            halves = (size[i] <= HALF * size[i - 1]).all() and size[i - 1, 0] > 0
            stays = (size[i:] >= HALF * size[outputs.index(peak)]).any()
            before, after, layer = v[outputs[i - 1]], v[outputs[i]], outputs[i].layer
            if halves and not stays and layer is not None:
                return layer, (before - after) / before
        return None
