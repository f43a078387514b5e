"""Outlier channels: far larger than the other channels of their site, in most inputs.

    m_sj = max_t |x_tj| of input s       high_sj = m_sj >= r median_j m_sj       r = 3; at heavy-tailed sites 10, of the residual 5
    recurrence_j = mean_s high_sj        score_j = robust z of log mean_s m_sj among channels (robust.py)

Ours: recurrence >= 1/2, with q <= 0.01 against exchangeable channels (fdr.py); score >= 3; and max |x_j|, over all inputs, at least 3 times
(5, where heavy-tailed) that of the median channel and 16 times the median |x| of the site.

Each keeps another innocent away. A random network has channels that are always the largest, so recurrence alone says nothing. A constant
vector through a random matrix has half-normal magnitudes, where 3 to 5 times the median channel is ordinary, but max / median |x| stays
under 6; a Gaussian tensor of a million values reaches 7. Where the typical channel is heavy-tailed itself (behind gate * up or GELU; in
attn.mix, whose first token is not averaged), 3 to 6 times the median channel is ordinary too: r = 10 is asked there; the neurons that
feed super weights stand at 16 to 32 in all-MiniLM-L6-v2. The residual stream is a sum and not a product: 5 is enough there.

A channel of the residual stream is one quantity from block to block: once established at one place of it, half of recurrence, score and
ratio is enough at the others (hysteresis), so that it is not lost and found again between layers.
Limit: with all channels alike nothing is high, and nothing is found however many inputs are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skerry.anatomy.sites import RESIDUAL, Site
from skerry.outliers.fdr import RECURRENCE, Q, benjamini_hochberg, recurrence_p
from skerry.outliers.finding import Finding
from skerry.outliers.frames import Frame, Frames
from skerry.outliers.presets import limit, listed
from skerry.outliers.robust import MIN_PEERS, Standing

HIGH, HEAVY_RESIDUAL, HEAVY_HIGH = 3, 5, 10
"""Times the median channel in an input: at ordinary sites, and at heavy-tailed ones of the residual stream and elsewhere."""
WIDE, HEAVY_WIDE = 3, 5
"""Times the median channel over all inputs: there the median channel has had many chances to reach far as well."""
HEAVY_REACH, HEAVY_KURTOSIS = 10.0, 4.5
"""A site is heavy-tailed when its median channel's largest |x| exceeds so many medians of |x|, or its median channel has this kurtosis."""
SCORE = 3.0
RATIO = 16.0
_READ_BY_MATRICES = ("attn.in", "attn.mix", "mlp.in", "mlp.down.in", "ssm.in", "ssm.out", "head.in")
_INT8_PARTS = ("attn.in", "mlp.in")


class Channels:
    """Every channel of a run with what was tested about it.

    Attributes:
        frame: The table `channels` by site.
        size: float64 [row], largest |x|.
        ratio: float64 [row], size / normal |x| of the site.
        score: float64 [row], robust z of the log magnitude.
        recurrence: float64 [row], share of inputs in which it was high.
        wide: bool [row], its largest |x| over all inputs is high too.
        p, q: float64 [row], chance of such a recurrence, and corrected.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames, self.frame = frames, frames("channels")
        f = self.frame
        self.size = np.fmax(-f["min"], f["max"])
        self.scale = frames.scale_of(f)
        self.ratio = self.size / self.scale[f.group]
        self.num = np.maximum(f["num_samples"], 0)
        standing = Standing(f, f["abs_max_mean"], self.num > 0)
        self.score = standing.score
        reach = f.quantiles(self.ratio, (0.5,))[0]
        heavy = (reach > HEAVY_REACH) | (f.quantiles(f["kurtosis"], (0.5,))[0] > HEAVY_KURTOSIS)
        residual = np.array([site.part in RESIDUAL for site in f.sites], bool)
        factor = np.where(heavy, np.where(residual, HEAVY_RESIDUAL, HEAVY_HIGH), HIGH)[f.group]
        columns = [f[f"high_{r}"] for r in (HIGH, HEAVY_RESIDUAL, HEAVY_HIGH)]
        self.high = np.select([factor == HIGH, factor == HEAVY_RESIDUAL], columns[:2], columns[2])
        self.wide = self.ratio >= (np.where(heavy, HEAVY_WIDE, WIDE) * reach)[f.group]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.recurrence = np.where(self.num > 0, self.high / self.num, 0.0)
            p0 = f.sum(self.high) / f.sum(self.num)
        p = recurrence_p(self.high, self.num, p0[f.group])
        self.p = np.where((f.count() >= MIN_PEERS)[f.group] & (self.num > 0), p, np.nan)
        self.q = benjamini_hochberg(self.p)

    def range(self, key: tuple[Any, ...], channel: int | None) -> tuple[float, float] | None:
        """Smallest and largest value of one channel of a site; None where it was not measured."""
        f, group = self.frame, self.frame.index.get(key)
        if group is None or channel is None:
            return None
        rows = f.rows(group)
        row = rows[f["channel"][rows] == channel]
        return (float(f["min"][row[0]]), float(f["max"][row[0]])) if len(row) else None

    def meets(self) -> dict[str, np.ndarray]:
        """Preset to bool [row]."""
        return {"skerry": self.systematic(), "llm-int8": self.int8(), "mamba-ptq": self.mamba()}

    def systematic(self) -> np.ndarray:
        """Bool [row], our own rule."""
        sure = self._reaches(1.0) & self.wide
        return sure | (self._reaches(0.5) & _along_the_residual(self.frame, sure))

    def _reaches(self, part: float) -> np.ndarray:
        """Significant, and at least this part of recurrence, score and ratio: bool [row]."""
        return (
            (self.q <= Q)
            & (self.recurrence >= part * RECURRENCE)
            & (self.score >= part * SCORE)
            & (self.ratio >= part * RATIO)
        )

    def int8(self) -> np.ndarray:
        """Bool [row], the rule of LLM.int8()."""
        from scipy.stats import norm

        f, magnitude = self.frame, limit("llm-int8", "magnitude")
        layers = _layers_read_as(self.frames, _INT8_PARTS)
        out = np.zeros(len(f), bool)
        use = np.flatnonzero(np.isin(f.group, [i for i, site in enumerate(f.sites) if site in layers]))
        use = use[self.size[use] >= magnitude]
        if not len(use):
            return out
        mean, std = f["mean"][use], np.maximum(f["std"][use], 1e-12)
        share = norm.sf((magnitude - mean) / std) + norm.cdf((-magnitude - mean) / std)
        use = use[share >= limit("llm-int8", "tokens")]
        where: dict[int, set[int]] = {}
        for row in use.tolist():
            where.setdefault(int(f["channel"][row]), set()).update(layers[f.sites[f.group[row]]])
        num_layers = len(set().union(*layers.values()))
        enough = [len(where[int(f["channel"][r])]) >= limit("llm-int8", "layers") * num_layers for r in use]
        out[use[np.array(enough, bool)]] = True
        return out

    def mamba(self) -> np.ndarray:
        """Bool [row], the rule of Mamba-PTQ."""
        f = self.frame
        num = np.maximum(f.sum(np.isfinite(self.size)), 1)
        mean = f.sum(self.size) / num
        std = np.sqrt(np.maximum(f.sum(np.square(self.size)) / num - mean**2, 0))
        sites = _layers_read_as(self.frames, _READ_BY_MATRICES)
        read = np.array([site in sites for site in f.sites], bool)
        return read[f.group] & (self.size > (mean + limit("mamba-ptq", "sigma") * std)[f.group])


def _along_the_residual(f: Frame, sure: np.ndarray) -> np.ndarray:
    """Bool [row], rows of the residual stream whose channel is sure somewhere in it."""
    residual = np.array([site.part in RESIDUAL for site in f.sites], bool)[f.group]
    return residual & np.isin(f["channel"], np.unique(f["channel"][sure & residual]))


def _layers_read_as(frames: Frames, parts: tuple[str, ...]) -> dict[Site, set[int]]:
    """Sites with numbers of their own that are one of these parts or the same tensor as one; with the layers of those parts."""
    out: dict[Site, set[int]] = {}
    named = [(Site(*key), Site(*key)) for key in frames.own]
    for site, own in [*named, *frames.aliases.items()]:
        if site.part in parts:
            out.setdefault(own, set()).add(-1 if site.layer is None else site.layer)
    return out


def outlier_channels(channels: Channels, chosen: str) -> list[Finding]:
    """Findings of type `outlier channel`.

    Args:
        channels: What was tested.
        chosen: Preset whose findings are listed.
    """
    f, meets = channels.frame, channels.meets()
    rows = np.flatnonzero(np.any(list(meets.values()), axis=0)) if len(f) else np.zeros(0, np.int64)
    out = []
    for r in rows.tolist():
        presets = tuple(name for name, mask in meets.items() if mask[r])
        if not listed(presets, chosen):
            continue
        site, low, high = f.sites[f.group[r]], float(f["min"][r]), float(f["max"][r])
        out.append(
            Finding(
                kind="activation",
                type="outlier channel",
                site=site.part,
                layer=site.layer,
                expert=site.expert,
                channel=int(f["channel"][r]),
                value=high if high >= -low else low,
                ratio=float(channels.ratio[r]),
                score=_finite(channels.score[r]),
                recurrence=float(channels.recurrence[r]),
                p_value=_optional(channels.p[r]),
                q_value=_optional(channels.q[r]),
                range=(low, high),
                centre=(low + high) / 2,
                presets=presets,
            )
        )
    return out


def _finite(x: float) -> float:
    return float(x) if np.isfinite(x) else 0.0


def _optional(x: float) -> float | None:
    return None if np.isnan(x) else float(x)
