"""Which positions and which tokens are massive time and again; and which of the largest values stand there.

    M_st = max_j |x_stj|        massive_st = M_st >= 16 median_t M_st

A position is tested over the inputs that have it, a token over its occurrences, but an input counts once: occurrences in one input are
not independent. Chance is that a place is massive with the share of all places of the site that are (fdr.py); positions and tokens of
all sites are corrected together. A token that is merely longer than others, in all of its channels, is no massive activation: one channel
must hold a quarter of its energy. (Untrained post-norm models have such first tokens: theirs alone is not averaged by attention.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from skerry.outliers.fdr import RECURRENCE, Q, benjamini_hochberg, recurrence_p
from skerry.outliers.frames import Frame, Frames
from skerry.outliers.robust import Standing

MASSIVE = "massive_16"
MIN_SAMPLES = 3
ENERGY = 0.25
"""A massive place has at least this share of its energy in one channel; else it is a large token, in all channels."""


class Bound(NamedTuple):
    """Positions or tokens of the run, each row with what was tested.

    Attributes:
        frame: `positions` or `tokens` by site.
        recurrence: float64 [row], share of inputs (of occurrences) in which it was massive.
        p: float64 [row], chance of that; NaN in fewer than 3 inputs.
        q: float64 [row], corrected.
        size: float64 [row], mean of its largest |x|.
        score: float64 [row], robust z of the log of `size` among its like.
        systematic: bool [row].
    """

    frame: Frame
    recurrence: np.ndarray
    p: np.ndarray
    q: np.ndarray
    size: np.ndarray
    score: np.ndarray
    systematic: np.ndarray


class Event(NamedTuple):
    """The largest values of one channel at one place.

    Attributes:
        key: Site.
        rows: Rows of `values`, largest first; empty where the site's largest values do not hold the place.
        channel: Channel, where there are rows.
        position: Row of `positions` it is bound to, or None.
        token: Row of `tokens` it is bound to, or None; with a position, the token that stands there in every input and nowhere else.
    """

    key: tuple[Any, ...]
    rows: list[int]
    channel: int | None
    position: int | None
    token: int | None


class Places:
    """Positions and tokens of all sites, tested together, and the largest values matched to them.

    Attributes:
        positions, tokens: What was tested.
        at_position, at_token: int64 [row of `values`], row of `positions` and of `tokens`; -1 where there is none.
    """

    def __init__(self, frames: Frames) -> None:
        self.values = frames("values")
        tested = [_test(frames("positions"), "count"), _test(frames("tokens"), "num_samples")]
        q = np.split(benjamini_hochberg(np.concatenate([t[2] for t in tested])), [len(tested[0][0])])
        self.positions, self.tokens = (
            Bound(
                f,
                r,
                p,
                qs,
                f["abs_max_mean"],
                Standing(f, f["abs_max_mean"]).score,
                (r >= RECURRENCE) & (qs <= Q),
            )
            for (f, r, p), qs in zip(tested, q, strict=True)
        )
        self.at_position = _match(self.values, self.positions.frame, "position")
        self.at_token = _match(self.values, self.tokens.frame, "token_id")
        self._drop_large_tokens()

    def _drop_large_tokens(self) -> None:
        """Positions without a dominant channel are not massive, nor are the tokens that stand at one such position only."""
        f = self.positions.frame
        spread = np.square(f["abs_max_mean"]) < ENERGY * np.square(f["norm_mean"])
        self.positions.systematic[spread] = False
        tied = np.flatnonzero((self.at_position >= 0) & (self.at_token >= 0))
        tied = tied[self.tokens.frame["count"][self.at_token[tied]] == f["count"][self.at_position[tied]]]
        tied = tied[spread[self.at_position[tied]]]
        self.tokens.systematic[self.at_token[tied]] = False

    def says(self, which: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Bool [row of `values`]: what `which` says of the place (`rows`, -1 is none) that the value stands at."""
        return np.append(which, False)[rows]

    def events(self, candidate: np.ndarray) -> Iterator[Event]:
        """The candidate values gathered by channel and place; then systematic places that no value shows.

        Args:
            candidate: bool [row of `values`].
        """
        v = self.values
        by_position = self.says(self.positions.systematic, self.at_position)
        gathered: dict[tuple[int, int, bool, int], list[int]] = {}
        rows = np.flatnonzero(candidate)
        for r in rows[np.lexsort((v["rank"][rows], v.group[rows]))].tolist():
            bound = bool(by_position[r])
            place = int(self.at_position[r] if bound else v["token_id"][r])
            gathered.setdefault((int(v.group[r]), int(v["channel"][r]), bound, place), []).append(r)
        for (group, channel, bound, place), members in gathered.items():
            token = self._same_token(members, place) if bound else int(self.at_token[members[0]])
            yield Event(
                v.keys[group],
                members,
                channel,
                place if bound else None,
                None if token in (-1, None) else token,
            )
        for is_position, bound_at, seen in (
            (True, self.positions, self.at_position),
            (False, self.tokens, self.at_token),
        ):
            for r in np.setdiff1d(np.flatnonzero(bound_at.systematic), seen).tolist():
                key = bound_at.frame.keys[bound_at.frame.group[r]]
                yield Event(key, [], None, r if is_position else None, None if is_position else r)

    def _same_token(self, rows: list[int], position: int) -> int | None:
        """The token that stands at the position in every input and nowhere else, if there is one."""
        ids = {int(self.at_token[r]) for r in rows}
        token = ids.pop() if len(ids) == 1 else -1
        same = token >= 0 and self.tokens.frame["count"][token] == self.positions.frame["count"][position]
        return token if same else None

    def of(self, event: Event) -> tuple[Bound, int | None]:
        """The place of an event: the table and its row."""
        return (self.positions, event.position) if event.position is not None else (self.tokens, event.token)


def _test(frame: Frame, samples: str) -> tuple[Frame, np.ndarray, np.ndarray]:
    count, hits, num = frame["count"], frame[MASSIVE], frame[samples]
    with np.errstate(divide="ignore", invalid="ignore"):
        recurrence = np.where(count > 0, hits / count, 0.0)
        p0 = frame.sum(hits) / frame.sum(count)
    p = recurrence_p(np.floor(recurrence * num + 1e-9), num, p0[frame.group])
    return frame, recurrence, np.where(num >= MIN_SAMPLES, p, np.nan)


def _match(values: Frame, frame: Frame, column: str) -> np.ndarray:
    """int64 [row of `values`], the row of `frame` with the same site and the same value of `column`; -1 where there is none."""
    if not len(values) or not len(frame):
        return np.full(len(values), -1, np.int64)
    group = np.array([frame.index.get(key, -1) for key in values.keys], np.int64)[values.group]
    span = int(max(values[column].max(), frame[column].max())) + 1
    code = frame.group * span + frame[column]
    order = np.argsort(code, kind="stable")
    wanted = group * span + values[column]
    slot = np.minimum(np.searchsorted(code[order], wanted), len(code) - 1)
    found = order[slot]
    return np.where((group >= 0) & (code[found] == wanted), found, -1)
