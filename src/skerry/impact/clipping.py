"""How much the largest values matter: they are clipped, beside as many random smaller values that are moved as far.

    clip       x -> max(-t, min(t, x)), t the q quantile of |x| of the place, q = 0.9, 0.99, ...
    control    as many values, drawn from those with |x| <= t of the same tensor, each moved towards zero by an amount |x| - t that clipping
               takes from a large value; it may go through zero and beyond, so both change the tensor by the same Euclidean norm

Either what all linear maps read is changed, or the residual stream after every block but the last, in the whole model at once; padding
is left alone. Thresholds, numbers and amounts are those of the untouched model, from a histogram that is within 1 %: a model that is disturbed
has other large values, and a control that followed them would feed on its own damage. Limit: q = 1 clips nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skerry.anatomy.change import change
from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import Site
from skerry.corpus.batch import Batch
from skerry.impact.calibrate import counted_rows
from skerry.impact.evaluate import Evaluator
from skerry.impact.rows import Rows, change_rows, follow
from skerry.measure.sketch import QuantileSketch, histogram
from skerry.run import Progress, Silent

QUANTILES = (0.9, 0.99, 0.999, 0.9999, 0.99999)
DRAWS = 3
Group = Literal["inputs", "residual"]
GROUPS: tuple[Group, ...] = ("inputs", "residual")
Row = dict[str, Any]
# A tensor [row channel] of one place, and where its rows stand, to new values.
PlaceEdit = Callable[[Site, Tensor, "Rows | None"], Tensor]


class Place(NamedTuple):
    """What clipping at one quantile does to one place of the untouched model.

    Attributes:
        threshold: Largest |x| that stays.
        share: Share of values that are larger.
        amounts: What these lose, |x| - threshold, ascending.
        ranks: Number of values that lose at most so much.
    """

    threshold: float
    share: float
    amounts: np.ndarray
    ranks: np.ndarray


class Done(NamedTuple):
    """New values, and how many were changed."""

    values: Tensor
    number: int


def price_clipping(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    *,
    calibration: Sequence[Batch] | None = None,
    quantiles: Sequence[float] = QUANTILES,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of the table `clipping`.

    Args:
        anatomy: The model; it is left as it was.
        batches: Inputs that are scored.
        calibration: Inputs on which thresholds are found; the same by default.
        quantiles: Of |x|, where to clip.
        draws: Random draws of the control.
        seed: Of the draws and the bootstrap.
        progress: Told how far it is.
    """
    progress, calibration = progress or Silent(), batches if calibration is None else calibration
    progress.start("clipping", len(GROUPS) * len(quantiles) * (1 + draws), "run")
    evaluator = Evaluator(anatomy, batches)
    rows: list[Row] = []
    for group in GROUPS:
        sketches = sizes(anatomy, calibration, group)
        for q in quantiles:
            places = {site: place_of(sketch, q) for site, sketch in sketches.items() if sketch.count}
            for draw in (None, *range(draws)):
                rows += [_measured(evaluator, group, q, places, draw, seed)] if places else []
                progress.advance()
    progress.done()
    return rows


def _measured(
    evaluator: Evaluator,
    group: Group,
    q: float,
    places: Mapping[Site, Place],
    draw: int | None,
    seed: int,
) -> Row:
    generator = None if draw is None else torch.Generator().manual_seed(seed + 1 + draw)
    changed, total = 0, 0

    def edit(site: Site, x: Tensor, rows: Rows | None) -> Tensor:
        nonlocal changed, total
        if site not in places:  # an expert that no token reached before
            return x
        counts = None if rows is None else rows.counts
        total += (len(x) if counts is None else int(counts.sum())) * x.shape[1]
        done = (
            clip(x, places[site], counts)
            if generator is None
            else disturb(x, places[site], counts, generator)
        )
        changed += done.number
        return done.values

    scores = evaluator.score(change_group(evaluator.anatomy, group, edit))
    found = evaluator.change(scores, seed=seed)
    return {
        "site": group,
        "threshold": float(np.median([place.threshold for place in places.values()])),
        "quantile": q,
        "share_clipped": changed / max(1, total),
        "control": draw is not None,
        "draw": draw,
        "outcome": evaluator.damage,
        "change": found.value if math.isfinite(found.value) else None,
        "ci_low": found.low if math.isfinite(found.low) else None,
        "ci_high": found.high if math.isfinite(found.high) else None,
        "num_samples": int(np.isfinite(scores.per_input[evaluator.damage]).sum()),
    }


def place_of(sketch: QuantileSketch, q: float) -> Place:
    """Where to clip at a quantile, and what that takes from the values above."""
    used = np.flatnonzero(sketch.counts)
    edges = np.array([sketch.first + used, sketch.first + used + 1], np.uint32) << np.uint32(17)
    low, high = edges.view(np.float32).astype(np.float64)
    # The upper end of the bucket that holds the quantile: what lies above is counted exactly.
    total = np.cumsum(sketch.counts[used])
    at = int(np.searchsorted(total, max(1, math.ceil(q * sketch.count))))
    middle = (low[at + 1 :] + high[at + 1 :]) / 2
    ranks = total[at + 1 :] - total[at]
    share = (total[-1] - total[at]) / sketch.count
    return Place(float(high[at]), float(share), middle - high[at], ranks)


def sizes(anatomy: Anatomy, batches: Sequence[Batch], group: Group) -> dict[Site, QuantileSketch]:
    """Quantile sketch of |x| of every place of a group, of the untouched model."""
    found: dict[Site, QuantileSketch] = {}

    def look(site: Site, x: Tensor, places: Rows | None) -> Tensor:
        found.setdefault(site, QuantileSketch()).add(histogram(counted_rows(x, places)))
        return x

    with change_group(anatomy, group, look):
        for batch in batches:
            run(anatomy, batch.input_ids, batch.keep)
    return found


@contextmanager
def change_group(anatomy: Anatomy, group: Group, edit: PlaceEdit) -> Iterator[None]:
    """Change what all linear maps read, or the residual stream after every block but the last, while open.

    Maps that read one tensor are given one result: their place is the tensor's.
    """
    with ExitStack() as stack:
        if group == "inputs":
            once = _Once(edit)
            maps = dense_maps(anatomy)
            edits = {d: _at(once, _place(d)) for d in maps}
            stack.enter_context(change_rows(anatomy, edits))
        else:
            frame = stack.enter_context(follow(anatomy))
            # What the last block leaves is what the damage is measured in.
            sites = [Site(n, "resid.out") for n in range(anatomy.dims.num_layers - 1)]

            def changing(site: Site) -> Callable[[Tensor, Tensor | None], Tensor]:
                return lambda x, token: edit(site, x, frame.places(len(x), token))

            stack.enter_context(change(anatomy, {s: changing(s) for s in sites if s in anatomy.taps}))
        yield


def _place(dense: Dense) -> Site:
    return Site(dense.layer, dense.reads.part, dense.reads.expert if dense.expert is None else dense.expert)


def _at(edit: PlaceEdit, site: Site) -> Callable[[Tensor, Rows | None], Tensor]:
    return lambda x, places: edit(site, x, places)


class _Once:
    """Readers of one tensor get one result, so that a random draw is the same for query, key and value."""

    def __init__(self, edit: PlaceEdit) -> None:
        self.edit = edit
        self._last: dict[Site, tuple[Tensor, int | None, Tensor]] = {}

    def __call__(self, site: Site, x: Tensor, places: Rows | None) -> Tensor:
        version = None if x.is_inference() else x._version
        if (last := self._last.get(site)) is not None:
            old, old_version, new = last
            if old.data_ptr() == x.data_ptr() and old.shape == x.shape and old_version == version:
                return new
        new = self.edit(site, x, places)
        self._last[site] = (x, version, new)
        return new


def clip(x: Float[Tensor, "row channel"], place: Place, counts: Bool[Tensor, "row"] | None) -> Done:
    """Values limited to the size of the place, in the rows that count."""
    large = x.abs() > place.threshold
    if counts is not None:
        large &= counts[:, None]
    return Done(torch.where(large, x.clamp(-place.threshold, place.threshold), x), int(large.sum()))


def disturb(
    x: Float[Tensor, "row channel"],
    place: Place,
    counts: Bool[Tensor, "row"] | None,
    generator: torch.Generator,
) -> Done:
    """As many random smaller values moved towards zero by as much as clipping the untouched model takes from the large ones."""
    small = x.abs() <= place.threshold
    if counts is not None:
        small &= counts[:, None]
    rows = len(x) if counts is None else int(counts.sum())
    # Rounded up or down by chance, so that the mean is right where a tensor has less than one such value.
    number = int(place.share * rows * x.shape[1] + float(torch.rand((), generator=generator)))
    if not number or not len(place.amounts):
        return Done(x, 0)
    chosen = _draw(small.reshape(-1), number, generator)
    # Evenly spaced ranks among the amounts, dealt out at random.
    ranks = (
        (torch.randperm(len(chosen), generator=generator).double() + 0.5)
        / max(1, len(chosen))
        * place.ranks[-1]
    )
    amounts = torch.from_numpy(place.amounts[np.searchsorted(place.ranks, ranks.numpy())]).to(x)
    new = x.reshape(-1).clone()
    old = new[chosen]
    new[chosen] = old - torch.where(old < 0, -amounts, amounts)
    return Done(new.reshape(x.shape), len(chosen))


def _draw(allowed: Bool[Tensor, "place"], number: int, generator: torch.Generator) -> Int[Tensor, "chosen"]:
    """So many different places that are allowed, or all of them where there are fewer."""
    # Most places are allowed: some tries give enough of them without a list of all.
    tries = torch.randint(len(allowed), (2 * number + 16,), generator=generator).to(allowed.device)
    tries = torch.unique(tries[allowed[tries]])
    if len(tries) < number:
        tries = allowed.nonzero()[:, 0]
    order = torch.randperm(len(tries), generator=generator).to(allowed.device)
    return tries[order[:number]]
