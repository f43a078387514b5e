"""The search on one seam: which shift and scale cost its readers least.

Tried are, in this order: nothing; the shift alone; thresholds (Wei et al. 2023, section 4.2); and, where scales below 1 are allowed, the
best threshold with channels below it enlarged, every channel filling the range, and SmoothQuant's balance of ranges and weights, with
the shift and without. All are compared by one number, the loss of the readers (`skerry.tame.consumers`). Nothing is always among the
candidates, so that what is found is not worse than nothing on the tokens that it was compared on.
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
ALPHAS = (0.5, 0.7, 0.85)
BELOW = (0.5, 1.0)
# A tensor whose two sides differ by less is symmetric.
SYMMETRIC = 0.05
FINALISTS = 3
PUBLISHED_STEPS, PUBLISHED_STEP, PUBLISHED_LOW = 100, 0.5, 1.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One change of the seam, with its loss on the tokens of the search (above the best: perhaps a lower bound).

    Attributes:
        change: Shift and scale.
        loss: See `Consumer.loss`.
        threshold: t on the upper side; None where no threshold made the scale.
        ratio: Lower threshold over upper.
    """

    change: SeamChange
    loss: float
    threshold: float | None = None
    ratio: float = 1.0


@dataclass(eq=False)
class SeamSearch:
    """Candidates of one seam.

    Attributes:
        seam: The seam.
        consumer: Its readers.
        scheme: How they will be rounded.
        ranges: Of the seam's tensor, every channel.
        views: Tokens to compare on.
        choices: What may be tried.
        tried: All candidates.
    """

    seam: Seam
    consumer: Consumer
    scheme: Scheme
    ranges: Ranges
    views: Sequence[View]
    choices: OsPlusChoices
    tried: list[Candidate] = field(default_factory=list)

    def run(self) -> list[Candidate]:
        """The candidates that are worth a comparison on all tokens, the best of the search first; nothing and the shift alone among them."""
        pooled = self.ranges.pooled(self.seam)
        shift = None if self.choices.no_shift(self.seam) else centre(pooled)
        if self.choices.search == "every":
            self._every(pooled.less(shift), shift)
            return [min(self.tried, key=lambda c: c.loss)]
        self._ask(None, None)
        if shift is not None:
            self._ask(shift, None)
        must = list(self.tried)
        self._thresholds(pooled.less(shift), shift)
        if not self.choices.floor:
            self._below_one(pooled, shift)
        if self.choices.asymmetric:
            self._two_sides(pooled.less(shift), shift)
        best = sorted(self.tried, key=lambda c: c.loss)[:FINALISTS]
        return best + [c for c in must if c not in best]

    @property
    def best(self) -> float:
        """The lowest loss so far."""
        return min((c.loss for c in self.tried), default=math.inf)

    def _ask(
        self,
        shift: Tensor | None,
        scale: Tensor | None,
        *,
        threshold: float | None = None,
        ratio: float = 1.0,
        stop: float | None = None,
    ) -> float:
        if scale is not None and bool((scale == 1).all()):
            scale = None
        change = SeamChange(self.seam.name, shift, scale)
        maps = self.consumer.prepare(change, self.scheme, self.ranges)
        loss = self.consumer.loss(self.views, maps, stop=self.best if stop is None else stop)
        self.tried.append(Candidate(change, loss, threshold, ratio))
        return loss

    def _thresholds(self, ranges: Ranges, shift: Tensor | None) -> None:
        """Scales max(1, reach / t), t from the largest reach downward."""
        if "scale" not in self.seam.carries:
            return
        far = reach(ranges)
        high, low = float(far.max()), float(torch.quantile(far, LOWEST_QUANTILE))
        fine = self.choices.steps // 3

        def loss(t: float, stop: float) -> float:
            return self._ask(shift, scale_of(ranges, t), threshold=t, stop=stop)

        coarse_to_fine(loss, low=low, high=high, coarse=self.choices.steps - fine, fine=fine, best=self.best)

    def _every(self, ranges: Ranges, shift: Tensor | None) -> None:
        """As published: K = max(100, max(x) / 0.5) thresholds in equal steps from the largest |x| down to 1."""
        high = float(torch.maximum(ranges.high, -ranges.low).max())
        steps = max(PUBLISHED_STEPS, int(float(ranges.high.max()) / PUBLISHED_STEP))

        def loss(t: float, stop: float) -> float:
            return self._ask(shift, scale_of(ranges, t), threshold=t, stop=stop)

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
        if "scale" not in self.seam.carries:
            return
        ranges, weights = pooled.less(shift), self._weights()
        best = min((c for c in self.tried if c.threshold is not None), key=lambda c: c.loss, default=None)
        if best is not None and best.threshold is not None:
            for below in BELOW:
                scale = scale_of(ranges, best.threshold, below=below)
                self._ask(shift, scale, threshold=best.threshold)
        losses = {a: self._ask(shift, balance(ranges, weights, a)) for a in ALPHAS}
        first, second = sorted(losses, key=lambda a: losses[a])[:2]
        self._ask(shift, balance(ranges, weights, (first + second) / 2))
        if shift is not None:
            # Without the shift, this is SmoothQuant with its own choice of alpha.
            self._ask(None, balance(pooled, weights, ALPHAS[0]))
            self._ask(None, balance(pooled, weights, first))

    def _two_sides(self, ranges: Ranges, shift: Tensor | None) -> None:
        """The ratio of the tensor's own sides, and the middle between it and 1, at the best threshold."""
        up, down = float(ranges.high.max()), float(-ranges.low.min())
        best = min((c for c in self.tried if c.threshold is not None), key=lambda c: c.loss, default=None)
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
