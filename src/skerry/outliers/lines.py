"""Outlier rows and columns: far longer than the other rows (columns) of their matrix, or far off among the entries of a norm.

    matrix:  ratio_j = |w_j| / median_j |w_j|,  score_j = robust z of log |w_j| (robust.py)        ratio >= 3 and score >= 5
    norm:    z_j = (w_j - median w) / max(1.4826 MAD, 0.05 median |w|)                             |z| >= 10 and |w_j| >= 2 median |w|

|w_j| is the Euclidean norm of the line. Of random matrices of any initialisation and width from 32 none has a line beyond 1.5 medians;
in all-MiniLM-L6-v2 the columns of w.down that write to channel 99 stand at 5 to 10. A bias vector is Gaussian when random: its largest
of 32 may be 9 times the median |b|, so norms are judged on the linear scale, and far out. A vector with more than half zeros has no
scale, and nothing is said about it. Weights depend on no input, so there is no recurrence.
Limit: equal lines have ratio 1 and score 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skerry.outliers.finding import Finding
from skerry.outliers.frames import Frame, Frames
from skerry.outliers.presets import limit, listed
from skerry.outliers.robust import MIN_PEERS, Standing

RATIO, SCORE, NORM_RATIO, NORM_SCORE = 3.0, 5.0, 2.0, 10.0
_BY = ("layer", "site", "expert", "axis")


class Lines:
    """Every row and column of every matrix with how far it stands out.

    Attributes:
        frame: The table `lines` by site and axis.
        ratio, score: float64 [row].
        is_norm: bool [row], an entry of a norm's gain or bias.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames, self.frame = frames, frames("lines", _BY)
        f = self.frame
        norm_group = np.array([key[1].startswith("norm.") for key in f.keys], bool)
        self.is_norm = norm_group[f.group] if len(f) else np.zeros(0, bool)
        standing = Standing(f, f["norm"])
        self.ratio, self.score = standing.ratio, standing.score
        self._judge_norms()
        # The one row of a vector and rows that are all zero have no peers.
        self.usable = (f.count()[f.group] >= MIN_PEERS) & np.isfinite(self.score)

    def _judge_norms(self) -> None:
        f = self.frame
        if not self.is_norm.any():
            return
        w = np.where(self.is_norm, f["mean"], np.nan)
        centre = f.quantiles(w, (0.5,))[0][f.group]
        mad = f.quantiles(np.abs(w - centre), (0.5,))[0]
        size = f.quantiles(np.abs(w), (0.5,))[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.maximum(1.4826 * mad, 0.05 * size)[f.group]
            z = np.where(spread > 0, (w - centre) / spread, np.nan)
            self.ratio = np.where(self.is_norm, np.abs(w) / size[f.group], self.ratio)
        self.score = np.where(self.is_norm, np.abs(z), self.score)

    def score_of(self, key: tuple[Any, ...], index: int) -> float:
        """Score of one line; 0 where there is none."""
        f, group = self.frame, self.frame.index.get(key)
        if group is None:
            return 0.0
        rows = f.rows(group)
        row = rows[f["index"][rows] == index]
        return float(self.score[row[0]]) if len(row) and np.isfinite(self.score[row[0]]) else 0.0

    def meets(self) -> dict[str, np.ndarray]:
        """Preset to bool [row]."""
        norms = (self.score >= NORM_SCORE) & (self.ratio >= NORM_RATIO)
        ours = np.where(self.is_norm, norms, (self.ratio >= RATIO) & (self.score >= SCORE))
        return {"skerry": ours & self.usable, "an": self._an(), "kovaleva": self._kovaleva()}

    def _an(self) -> np.ndarray:
        """Columns of down projections whose largest |w| exceeds 200 x their mean |w|."""
        f = self.frame
        down = np.array([key[1] == "w.down" and key[3] == "column" for key in f.keys], bool)
        if not down.any():
            return np.zeros(len(f), bool)
        ratio = np.fmax(-f["min"], f["max"]) / (f["mean_abs"] + 1e-8)
        return down[f.group] & (ratio > limit("an", "column"))

    def _kovaleva(self) -> np.ndarray:
        """Gain and bias both beyond 3 standard deviations of their norm, in half of the layers that have the norm."""
        f = self.frame
        far: dict[tuple[int, str], set[int]] = {}
        count: dict[tuple[str, int], int] = {}
        out = np.zeros(len(f), bool)
        for (layer, part, _, axis), rows in f.groups():
            if layer is None or axis != "column" or not part.startswith("norm."):
                continue
            w = f["mean"][rows]
            far[layer, part] = set(
                f["index"][rows[np.abs(w - w.mean()) > limit("kovaleva", "sigma") * w.std()]].tolist()
            )
        both = {
            (n, p): c & far.get((n, f"{p}.bias"), set())
            for (n, p), c in far.items()
            if not p.endswith(".bias")
        }
        layers = {p: sum(q == p for _, q in both) for _, p in both}
        for (_, part), channels in both.items():
            for c in channels:
                count[part, c] = count.get((part, c), 0) + 1
        chosen = {k for k, n in count.items() if n >= limit("kovaleva", "layers") * layers[k[0]]}
        for (layer, part, _, axis), rows in f.groups():
            hit = [c for p, c in chosen if p == part and c in both.get((layer, part), ())]
            if hit and axis == "column":
                out[rows[np.isin(f["index"][rows], hit)]] = True
        return out


def outlier_lines(lines: Lines, chosen: str) -> list[Finding]:
    """Findings of type `outlier row` and `outlier column`.

    Args:
        lines: How far each stands out.
        chosen: Preset whose findings are listed.
    """
    f, meets = lines.frame, lines.meets()
    median = _medians(lines.frames, f)
    out = []
    for r in np.flatnonzero(np.any(list(meets.values()), axis=0)).tolist() if len(f) else []:
        presets = tuple(name for name, mask in meets.items() if mask[r])
        if not listed(presets, chosen):
            continue
        layer, part, expert, axis = f.keys[f.group[r]]
        low, high = float(f["min"][r]), float(f["max"][r])
        value = high if high >= -low else low
        scale = median[f.group[r]]
        out.append(
            Finding(
                kind="weight",
                type="outlier row" if axis == "row" else "outlier column",
                site=part,
                layer=layer,
                expert=expert,
                row=int(f["index"][r]) if axis == "row" else None,
                column=int(f["index"][r]) if axis == "column" else None,
                value=value,
                ratio=abs(value) / scale if scale > 0 else float(lines.ratio[r]),
                score=float(lines.score[r]) if np.isfinite(lines.score[r]) else 0.0,
                range=(low, high),
                centre=(low + high) / 2,
                presets=presets,
            )
        )
    return out


def _medians(frames: Frames, f: Frame) -> np.ndarray:
    """float64 [group of `f`], median |w| of the matrix."""
    matrices = frames("matrices")
    median = dict(zip([matrices.keys[g] for g in matrices.group], matrices["median"].tolist(), strict=True))
    return np.array([median.get(key[:3], np.nan) for key in f.keys], np.float64)
