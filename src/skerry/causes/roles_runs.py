"""Runs the arms of the role test and their controls on a few inputs, and keeps what each cost each input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.attention import AttentionView
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.interventions import Intervention
from skerry.causes.outcome import Judge, Outcome
from skerry.causes.rerun import Rerun
from skerry.causes.roles_parts import (
    ARMS,
    Arm,
    Means,
    Moved,
    Terms,
    add_from_current,
    add_to_mix,
    delta,
    read_terms,
    reading,
    rows_of_heads,
)
from skerry.causes.sinks import Sinks
from skerry.corpus.batch import Batch

# Scores of a layer, and parts of all layers, held at once, in numbers of four bytes: 256 MB each.
NUMBERS_AT_ONCE = 2**26
# The identity is checked on the running model: products in low precision are this far off at most.
IDENTITY_ERROR = 0.05
# Arm and whether it is the control: the arm that all others are measured by needs none.
RUNS = [(arm, control) for arm in ARMS for control in (False, True) if not (control and arm == "neither")]


class Target(NamedTuple):
    """Whose sinks are changed: one head, all heads with sinks of a layer, or of the model.

    Attributes:
        level: head, layer or model.
        heads: Layer to heads.
    """

    level: str
    heads: Mapping[int, Sequence[int]]

    @property
    def layer(self) -> int | None:
        """None for the whole model."""
        return None if self.level == "model" else next(iter(self.heads))

    @property
    def head(self) -> int | None:
        """None for more than one head."""
        return next(iter(self.heads.values()))[0] if self.level == "head" else None


@dataclass
class Costs:
    """What one target's arms cost, batch by batch: arm to outcome to values per input."""

    arms: dict[str, dict[str, list[Tensor]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    controls: dict[str, dict[str, list[Tensor]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def add(self, arm: str, outcome: Outcome, clean: Outcome, *, control: bool) -> None:
        """Keep the differences from the untouched model."""
        place = (self.controls if control else self.arms)[arm]
        for name, value in outcome.items():
            place[name].append(value - clean[name])

    def of(self, arm: str, outcome: str, *, control: bool = False) -> np.ndarray:
        """Differences [input]."""
        found = (self.controls if control else self.arms)[arm][outcome]
        return torch.cat(found).numpy() if found else np.zeros(0)


def choose_inputs(batches: Sequence[Batch], inputs: int | None, anatomy: Anatomy) -> tuple[list[Batch], int]:
    """The first inputs with at least two tokens, in new batches, and how many were too short.

    Inputs were drawn at random when the batches were made. 32 by default, 12 when they are longer than 128 tokens. The inputs of a new
    batch are at least half as long as its longest, so little is computed for padding, and fit into memory.
    """
    chosen: list[Batch] = []
    short = taken = 0
    for batch in batches:
        # Padding may be on the left: what counts is the last token.
        length = (batch.keep * torch.arange(1, batch.keep.shape[1] + 1)).amax(1)
        long_enough = batch.keep.sum(1) > 1
        short += int((~long_enough).sum())
        wanted = inputs if inputs is not None else (32 if batch.keep.shape[1] <= 128 else 12)
        rows = long_enough.nonzero()[: max(0, wanted - taken), 0]
        taken += len(rows)
        for some in _alike(rows, length, anatomy):
            width = int(length[some].max())
            chosen.append(Batch(batch.input_ids[some, :width], batch.keep[some, :width], batch.sample[some]))
        if taken >= wanted:
            break
    return chosen, short


def _alike(rows: Tensor, length: Tensor, anatomy: Anatomy) -> list[Tensor]:
    """Rows by falling length, in groups of similar length."""
    groups: list[list[int]] = []
    for row in sorted(rows.tolist(), key=lambda r: -int(length[r])):
        longest = int(length[groups[-1][0]]) if groups else 0
        fits = groups and len(groups[-1]) < _rows_at_once(anatomy, longest)
        if fits and 2 * int(length[row]) >= longest:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [torch.tensor(group) for group in groups]


def _rows_at_once(anatomy: Anatomy, length: int) -> int:
    dims = anatomy.dims
    scores = dims.num_heads * length * length
    parts = 2 * dims.num_layers * dims.num_heads * dims.head_dim * length
    return max(1, NUMBERS_AT_ONCE // max(1, scores, parts))


@dataclass
class Profile:
    """What the first pass tells of one layer.

    Attributes:
        means: Means over contexts.
        mass: Mean p of each head.
        error: Largest |mix - (s r + b)| over the largest |mix|.
    """

    means: Means
    mass: Float[Tensor, "head"]
    error: float


@torch.no_grad()
def profile(
    anatomy: Anatomy, batches: Sequence[Batch], sinks: Sinks, layers: Sequence[int]
) -> tuple[dict[int, Profile], list[str]]:
    """Means over contexts of every layer, from one pass, and what could not be read."""
    sums = {layer: _Sums() for layer in layers}
    for batch in batches:
        watcher = _Watcher(sums, sinks, batch)
        with watch(anatomy, ("attn.mix",), on_activation=watcher.compare, on_attention=watcher.add):
            run(anatomy, batch.input_ids, batch.keep)
    notes = [
        f"block {layer} shows no value vectors, so the role of its sinks is unknown"
        for layer, s in sums.items()
        if s.hidden
    ]
    return {layer: s.profile() for layer, s in sums.items() if s.count}, notes


class _Watcher:
    """Adds up the parts of one batch, and compares them with what the output projection reads next."""

    def __init__(self, sums: Mapping[int, _Sums], sinks: Sinks, batch: Batch) -> None:
        self.sums, self.sinks, self.batch = sums, sinks, batch
        self.latest: dict[int, Terms] = {}

    def add(self, view: AttentionView) -> None:
        if view.layer not in self.sums:
            return
        if view.value is None:
            self.sums[view.layer].hidden = True
            return
        terms = read_terms(view, self.sinks.mask(view.layer, self.batch), self.batch.keep)
        self.sums[view.layer].add(terms)
        self.latest[view.layer] = terms

    def compare(self, site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if site.layer in self.latest:
            self.sums[site.layer].compare(x, self.latest.pop(site.layer))


class _Sums:
    """Sums over the queries of one layer."""

    def __init__(self) -> None:
        self.count = 0.0
        self.hidden = False
        self.totals: dict[str, Tensor] = {}
        self.error = self.largest = 0.0

    def add(self, terms: Terms) -> None:
        counts = terms.queries[:, None].double()
        self.count += float(counts.sum())
        for name in ("mass", "scale"):
            self._plus(name, (getattr(terms, name).double() * counts).sum((0, 2)))
        for name in ("bias", "rest", "output"):
            self._plus(name, torch.einsum("bhqc,bq->hc", getattr(terms, name).double(), counts[:, 0]))

    def _plus(self, name: str, more: Tensor) -> None:
        self.totals[name] = self.totals[name] + more if name in self.totals else more

    def compare(self, mix: Tensor, terms: Terms) -> None:
        kept = terms.queries.reshape(-1)
        ours, real = rows_of_heads(terms.output)[kept], mix.float()[kept]
        if ours.shape != real.shape:
            self.error = float("inf")
        elif len(real):
            self.error = max(self.error, float((ours - real).abs().max()))
            self.largest = max(self.largest, float(real.abs().max()))

    def profile(self) -> Profile:
        means = Means(
            **{name: (self.totals[name] / self.count).float() for name in ("scale", "bias", "rest", "output")}
        )
        error = self.error / self.largest if self.largest else self.error
        return Profile(means, (self.totals["mass"] / self.count).float(), error)


class Arms:
    """All arms and controls on one batch.

    Attributes:
        rerun: The batch under the untouched model.
        terms: Parts of its layers.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        batch: Batch,
        sinks: Sinks,
        means: Mapping[int, Means],
        judge: Judge,
        *,
        seed: int,
    ) -> None:
        self.anatomy, self.batch, self.sinks, self.means = anatomy, batch, sinks, means
        self.terms: dict[int, Terms] = {}

        with reading(anatomy, list(means), sinks, batch, self.terms.__setitem__):
            self.rerun = Rerun(anatomy, batch, judge)
        generator = torch.Generator().manual_seed(seed)
        self.moved = {
            layer: Moved.drawn(terms.queries, generator) for layer, terms in sorted(self.terms.items())
        }

    def measure(self, target: Target, costs: Costs) -> Iterator[None]:
        """Run every arm and its control; yields after each run."""
        for name, control in RUNS:
            outcome = self.rerun.run(self._intervention(target, ARMS[name], control=control))
            costs.add(name, outcome, self.rerun.clean, control=control)
            yield

    def _intervention(self, target: Target, arm: Arm, *, control: bool) -> Intervention:
        def added(layer: int, terms: Terms) -> Tensor:
            new = delta(arm, terms, self.means[layer], target.heads[layer])
            return self.moved[layer](new) if control else new

        if target.level == "model":
            return add_from_current(self.anatomy, sorted(target.heads), self.sinks, self.batch, added)
        # What reaches the changed layer is untouched, so its parts are those of the untouched model.
        (layer,) = target.heads
        return add_to_mix(self.anatomy, layer, target.heads[layer], added(layer, self.terms[layer]))
