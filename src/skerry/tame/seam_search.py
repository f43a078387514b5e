"""The search on one seam: which shift and scale cost its readers least.

Tried are, in this order: nothing; the shift alone; thresholds (Wei et al. 2023, section 4.2); and, where scales below 1 are allowed,
SmoothQuant's balance of ranges and weights, thresholds on that balance, the best threshold with channels below it enlarged, (geometric)
means of threshold and balance, and SmoothQuant without the shift. All are compared by one number, the loss of the readers (`skerry.tame.consumers`). Nothing is always among
the candidates, so that what is found is not worse than nothing on the tokens that it was compared on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skerry.anatomy.seams import Seam
from skerry.impact.scheme import Scheme
from skerry.tame.capture import View
from skerry.tame.consumers import Consumer, is_router
from skerry.tame.os_plus_choices import OsPlusChoices
from skerry.tame.search import Tried, coarse_to_fine, every
from skerry.tame.threshold import Ranges, balance, centre, reach, scale_of
from skerry.tame.transform import SeamChange

# Thresholds below this quantile of the reaches bring nearly every channel to them, which is one candidate of its own.
LOWEST_QUANTILE = 0.05
ALPHAS = (0.5, 0.7)
BELOW = 0.25
SHARES = (0.3, 0.6)
QUANTILES = (0.5, 0.9)
# A tensor whose two sides differ by less is symmetric.
SYMMETRIC = 0.05
FINALISTS = 2
# How far behind the best, on the same tokens, a candidate is given up.
BEHIND = 1.1
# How much worse the shift alone may be for thresholds to be searched with it.
WORSE = 1.02
PUBLISHED_STEPS, PUBLISHED_STEP, PUBLISHED_LOW = 100, 0.5, 1.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One change of the seam, with its loss on the tokens of the search.

    Attributes:
        change: Shift and scale.
        loss: Mean over tokens of the weighted squared errors, see `skerry.tame.consumers`.
        threshold: t on the upper side; None where no threshold made the scale.
        ratio: Lower threshold over upper.
        complete: Compared on all tokens of the search; otherwise left behind after some of them.
    """

    change: SeamChange
    loss: float
    threshold: float | None = None
    ratio: float = 1.0
    complete: bool = True


@dataclass(eq=False)
class SeamSearch:
    """Candidates of one seam.

    Attributes:
        seam: The seam.
        consumer: Its readers.
        scheme: How they will be rounded.
        ranges: Of the seam's tensor, every channel.
        grid_ranges: Ranges that static grids are made of while candidates are compared.
        views: Tokens to compare on.
        choices: What may be tried.
        tried: All candidates.
    """

    seam: Seam
    consumer: Consumer
    scheme: Scheme
    ranges: Ranges
    grid_ranges: Ranges
    views: Sequence[View]
    choices: OsPlusChoices
    tried: list[Candidate] = field(default_factory=list)
    _record: list[float] = field(default_factory=list)

    def run(self) -> list[Candidate]:
        """The candidates that are worth a comparison on all tokens, the best of the search first and nothing last."""
        pooled = self.ranges.pooled(self.seam)
        shift = None if self.choices.no_shift(self.seam) else centre(pooled)
        if self.choices.search == "every":
            self._every(pooled.less(shift), shift)
            return [min(self.tried, key=lambda c: c.loss), Candidate(SeamChange(self.seam.name), math.inf)]
        nothing = self._ask(None, None)
        if shift is not None and self._ask(shift, None) > nothing * WORSE:
            # Where the grid is already as wide as the widest token, moving the centre can cost more than it brings.
            shift = None
        self._thresholds(pooled.less(shift), shift)
        if not self.choices.floor:
            self._below_one(pooled, shift)
        if self.choices.asymmetric:
            self._two_sides(pooled.less(shift), shift)
        best = sorted((c for c in self.tried if c.complete), key=lambda c: c.loss)[:FINALISTS]
        return [*(c for c in best if c is not self.tried[0]), self.tried[0]]

    def _ask(
        self,
        shift: Tensor | None,
        scale: Tensor | None,
        *,
        threshold: float | None = None,
        ratio: float = 1.0,
    ) -> float:
        if scale is not None and bool((scale == 1).all()):
            scale = None
        change = SeamChange(self.seam.name, shift, scale)
        maps = self.consumer.prepare(change, self.scheme, self.grid_ranges)
        sums = self.consumer.sums(self.views, maps, stop=self._is_behind)
        tokens = sum(v.num_tokens for v in self.views[: len(sums)])
        complete = len(sums) == len(self.views)
        if complete and (not self._record or sums[-1] < self._record[-1]):
            self._record = sums
        loss = sums[-1] / tokens
        self.tried.append(Candidate(change, loss, threshold, ratio, complete))
        return loss

    def _is_behind(self, piece: int, total: float) -> bool:
        """Whether a candidate may stop: the errors of candidates on the same tokens go together, so 10 % are more than their noise."""
        return self.choices.search == "fine" and bool(self._record) and total > BEHIND * self._record[piece]

    def _thresholds(self, ranges: Ranges, shift: Tensor | None) -> None:
        """Scales max(1, reach / t), t from the largest reach downward."""
        if "scale" not in self.seam.carries:
            return
        far = reach(ranges)
        high, low = float(far.max()), float(torch.quantile(far, LOWEST_QUANTILE))
        fine = self.choices.steps // 3

        def loss(t: float) -> float:
            return self._ask(shift, scale_of(ranges, t), threshold=t)

        coarse_to_fine(loss, low=low, high=high, coarse=self.choices.steps - fine, fine=fine)

    def _every(self, ranges: Ranges, shift: Tensor | None) -> None:
        """As published: K = max(100, max(x) / 0.5) thresholds in equal steps from the largest |x| down to 1."""
        high = float(torch.maximum(ranges.high, -ranges.low).max())
        steps = max(PUBLISHED_STEPS, int(float(ranges.high.max()) / PUBLISHED_STEP))

        def loss(t: float) -> float:
            return self._ask(shift, scale_of(ranges, t), threshold=t)

        tried: list[Tried] = []
        if "scale" in self.seam.carries:
            tried = every(loss, low=PUBLISHED_LOW, high=high, steps=steps)
        if not tried:
            self._ask(shift, None)
        if not self.choices.floor:
            self._below_one(self.ranges.pooled(self.seam), shift)
        if self.choices.asymmetric:
            self._two_sides(ranges, shift)

    def _below_one(self, pooled: Ranges, shift: Tensor | None) -> None:
        """Scales below 1: enlarged channels, SmoothQuant's balance, and a threshold on it, and means of it and the best threshold."""
        if "scale" not in self.seam.carries:
            return
        ranges, weights = pooled.less(shift), self._weights()
        losses = {a: self._ask(shift, balance(ranges, weights, a)) for a in ALPHAS}
        even = balance(ranges, weights, min(losses, key=lambda a: losses[a]))
        # A threshold on the balance itself: channels that are both wide and lightly weighted are brought back, the others stay as they are.
        need = balance(ranges, weights, ALPHAS[0])
        for quantile in QUANTILES:
            self._ask(shift, (need / torch.quantile(need, quantile)).clamp_min(1.0))
        best = self._best_threshold()
        if best is not None and best.threshold is not None:
            t = best.threshold
            self._ask(shift, scale_of(ranges, t, below=BELOW), threshold=t)
            squeezed = scale_of(ranges, t)
            for share in SHARES:
                self._ask(shift, squeezed.pow(1 - share) * even.pow(share))
        if shift is not None:
            # SmoothQuant itself.
            self._ask(None, balance(pooled, weights, ALPHAS[0]))

    def _best_threshold(self) -> Candidate | None:
        return min((c for c in self.tried if c.threshold is not None), key=lambda c: c.loss, default=None)

    def _two_sides(self, ranges: Ranges, shift: Tensor | None) -> None:
        """The ratio of the tensor's own sides, and the middle between it and 1, at the best threshold."""
        up, down = float(ranges.high.max()), float(-ranges.low.min())
        best = self._best_threshold()
        if best is None or best.threshold is None or min(up, down) <= 0 or abs(up / down - 1) < SYMMETRIC:
            return
        for ratio in (down / up, math.sqrt(down / up)):
            # The geometric mean of the two thresholds stays.
            t = best.threshold / math.sqrt(ratio)
            self._ask(shift, scale_of(ranges, t, ratio=ratio), threshold=t, ratio=ratio)

    def _weights(self) -> Tensor:
        """Largest |W| of every independent channel over all readers."""
        wide = torch.stack(
            [d.weight.abs().amax(0).double() for d in self.seam.readers if not is_router(d)]
        ).amax(0)
        return self.seam.pool(wide)


def finish(candidates: Sequence[Candidate], losses: Sequence[float]) -> tuple[Candidate, float]:
    """The candidate with the lowest loss on all tokens; of equals the one that changes least."""
    order = sorted(
        range(len(candidates)),
        key=lambda i: (
            losses[i],
            candidates[i].change.scale is not None,
            candidates[i].change.shift is not None,
        ),
    )
    return candidates[order[0]], losses[order[0]]
