"""Every head's key positions against uniform attention: what sinks, head profiles and layer profiles are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from skerry.outliers.fdr import benjamini_hochberg, recurrence_p
from skerry.outliers.frames import Frames
from skerry.outliers.robust import Standing
from skerry.outliers.uniform import uniform_alpha

MIN_QUERIES = 8
"""Positions that fewer queries of an input see are no sinks: under a causal mask the last key is seen by one."""


class Keys:
    """Positions of every head, tested.

    Attributes:
        frame: The table `keys` by layer and head.
        uniform: float64 [row], alpha under uniform attention.
        recurrence: float64 [row], share of inputs in which alpha exceeds 0.3.
        p, q: float64 [row], chance of that if all positions of the head were alike, and corrected; NaN where too few queries see it.
        eligible: bool [row], at least 8 queries of an input see it.
        score: float64 [row], robust z of log alpha / uniform among the head's eligible positions.
        received: float64 [row], attention received in one input, summed over its queries.
        elsewhere: float64 [row], mean norm of the head's other value vectors; NaN where values are not visible.
    """

    def __init__(self, frames: Frames) -> None:
        self.frame = f = frames("keys", ("layer", "head"))
        self.num = np.maximum(f["num_samples"], 0)
        some = np.maximum(self.num, 1)
        self.eligible = (self.num > 0) & (f["exposure"] / some >= MIN_QUERIES)
        self.uniform = self._uniform()
        self.recurrence = f["sink"] / some
        self.received = f["received"] / some
        tested = np.where(self.eligible, self.num, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            p0 = f.sum(np.where(self.eligible, f["sink"], 0)) / f.sum(tested)
            lift = f["alpha"] / self.uniform
        p = recurrence_p(np.where(self.eligible, f["sink"], 0), tested, p0[f.group])
        self.p = np.where(self.eligible, p, np.nan)
        self.q = benjamini_hochberg(self.p)
        self.score = np.nan_to_num(Standing(f, lift, self.eligible).score, nan=0.0, posinf=0.0, neginf=0.0)
        norm = np.where(np.isfinite(f["value_norm"]), f["value_norm"] * self.num, np.nan)
        weight = f.sum(np.where(np.isfinite(norm), self.num, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            self.elsewhere = (f.sum(norm)[f.group] - norm) / (weight[f.group] - self.num)

    def _uniform(self) -> np.ndarray:
        f = self.frame
        out = np.zeros(len(f))
        known: dict[bytes, np.ndarray] = {}  # heads of one mask share it
        for _, rows in f.groups():
            order = rows[np.argsort(f["position"][rows])]
            num, exposure = self.num[order], f["exposure"][order]
            key = num.tobytes() + exposure.tobytes()
            if key not in known:
                known[key] = uniform_alpha(num, exposure)
            out[order] = known[key]
        return out

    def strongest(self, rows: np.ndarray) -> int:
        """The row with the largest alpha among those that enough queries see (among all, in very short inputs)."""
        use = rows[self.eligible[rows]] if self.eligible[rows].any() else rows
        return int(use[np.argmax(np.nan_to_num(self.frame["alpha"][use]))])

    def value_ratio(self, row: int) -> float | None:
        """Norm of the value vector / mean norm of the others; None where values are not visible."""
        ratio = self.frame["value_norm"][row] / self.elsewhere[row] if self.elsewhere[row] > 0 else np.nan
        return float(ratio) if np.isfinite(ratio) else None


def bound_tokens(frames: Frames, keys: Keys) -> dict[tuple[int, int], int]:
    """The token that stands at a position in every input and nowhere else: (layer, position) to row of `key_tokens`.

    Two sums that agree in every digit are the same sum: a token's received and exposed attention (means over heads) equal those of
    the position it is bound to. Only positions that some head attends to more than usual are looked at.
    """
    tokens, f = frames("key_tokens", ("layer",)), keys.frame
    out: dict[tuple[int, int], int] = {}
    wanted: dict[int, set[int]] = {}
    for r in np.flatnonzero((f["alpha"] > 3 * keys.uniform) | (f["sink"] > 0)).tolist():
        wanted.setdefault(f.keys[f.group[r]][0], set()).add(int(f["position"][r]))
    heads: dict[int, list[np.ndarray]] = {}
    for (layer, _), rows in f.groups():
        heads.setdefault(layer, []).append(rows)
    for layer, positions in wanted.items():
        group = tokens.index.get((layer,))
        if group is None:
            continue
        rows = tokens.rows(group)
        sums = _by_position(f, heads[layer])
        for position in positions & sums.keys():
            received, exposure = sums[position]
            same = np.isclose(tokens["received"][rows], received, rtol=1e-6) & np.isclose(
                tokens["exposure"][rows], exposure, rtol=1e-9
            )
            if same.sum() == 1:
                out[layer, position] = int(rows[same][0])
    return out


def _by_position(f: Any, heads: list[np.ndarray]) -> dict[int, tuple[float, float]]:
    """Position to mean over heads of received and exposure."""
    rows = np.concatenate(heads)
    size = int(f["position"][rows].max()) + 1
    received = np.bincount(f["position"][rows], f["received"][rows], size) / len(heads)
    exposure = np.bincount(f["position"][rows], f["exposure"][rows], size) / len(heads)
    return {p: (float(received[p]), float(exposure[p])) for p in range(size)}
