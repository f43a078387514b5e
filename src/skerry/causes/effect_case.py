"""The inputs that effects are measured on, where in them outliers stand, and what stands there in the untouched model.

A cell is one value of the residual stream: a token and a channel. All that is done to an outlier is done to its cells, one per token that
carries it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.anatomy.change import Edit
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.carrier import Carrier, Places
from skerry.causes.roles_runs import choose_inputs
from skerry.causes.spread_read import shown_as
from skerry.causes.spread_text import rows_of_batch
from skerry.corpus.batch import Batch


@dataclass(frozen=True)
class Case:
    """Some inputs that run together.

    Attributes:
        number: Which of the cases it is.
        batch: Their token ids.
        tokens: Carrier number to the flat tokens of this batch that carry it.
        values: Carrier number and site to the untouched values of its cells, in the order of `tokens`.
        energy: Site to the sum of squares of all values in channels without an outlier.
    """

    number: int
    batch: Batch
    tokens: Mapping[int, Int[Tensor, "token"]]
    values: dict[tuple[int, Site], Float[Tensor, "token"]] = field(default_factory=dict)
    energy: dict[Site, float] = field(default_factory=dict)

    def sample(self, carrier: int) -> Int[Tensor, "token"]:
        """Input of the batch of each token that carries an outlier."""
        return self.tokens[carrier] // self.batch.keep.shape[1]

    def cells(self, carriers: Sequence[Carrier]) -> Cells:
        """The cells of some outliers, one after the other."""
        token = [self.tokens[c.number] for c in carriers]
        channel = [torch.full_like(t, c.channel) for t, c in zip(token, carriers, strict=True)]
        return Cells(torch.cat(token), torch.cat(channel))


@dataclass(frozen=True)
class Cells:
    """Single values of an activation.

    Attributes:
        token: Flat token of each.
        channel: Its channel.
    """

    token: Int[Tensor, "cell"]
    channel: Int[Tensor, "cell"]

    def edit(self, new: Callable[[Float[Tensor, "cell"]], Tensor]) -> Edit:
        """The edit that puts other values there."""

        def edit(x: Tensor, _rows: Tensor | None) -> Tensor:
            at = self.token.to(x.device), self.channel.to(x.device)
            return x.index_put(at, new(x[at]).to(x))

        return edit


def choose_cases(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    carriers: Sequence[Carrier],
    places: Places,
    inputs: int | None = None,
    *,
    needed: Sequence[Carrier] | None = None,
) -> list[Case]:
    """The first inputs with a token that carries one of the needed outliers, any by default; see `choose_inputs` for how many."""
    wanted = [c.number for c in (carriers if needed is None else needed)]
    masks: dict[int, dict[int, Tensor]] = {}
    kept: list[Batch] = []
    for i, batch in enumerate(batches):
        by_carrier = {c.number: _mask(batch, places.carried[i].get(c.number)) for c in carriers}
        rows = torch.stack([by_carrier[n] for n in wanted]).any(0).any(1).nonzero()[:, 0]
        for row in rows.tolist():
            masks[int(batch.sample[row])] = {number: mask[row] for number, mask in by_carrier.items()}
        if len(rows):
            kept.append(rows_of_batch(batch, rows))
    chosen, _ = choose_inputs(kept, inputs, anatomy)
    cases = []
    for number, batch in enumerate(chosen):
        width = batch.keep.shape[1]
        tokens = {
            c.number: torch.stack([masks[int(s)][c.number][:width] for s in batch.sample])
            .reshape(-1)
            .nonzero()[:, 0]
            for c in carriers
        }
        cases.append(Case(number, batch, tokens))
    return cases


def _mask(batch: Batch, tokens: Tensor | None) -> Tensor:
    mask = torch.zeros(batch.keep.numel(), dtype=torch.bool)
    if tokens is not None:
        mask[tokens] = True
    return mask.reshape(batch.keep.shape) & batch.keep


def alive_sites(anatomy: Anatomy, carrier: Carrier) -> list[Site]:
    """Where a block hands the outlier on: from its birth to the block before its exit."""
    last = anatomy.dims.num_layers if carrier.exit_layer is None else carrier.exit_layer
    first = [Site(0, "resid.in")] if carrier.birth_layer is None else []
    return [*first, *(Site(layer, "resid.out") for layer in range(carrier.birth_layer or 0, last))]


def birth_site(carrier: Carrier) -> Site:
    """Where it stands first."""
    return Site(0, "resid.in") if carrier.birth_layer is None else Site(carrier.birth_layer, "resid.out")


def read_values(anatomy: Anatomy, cases: Sequence[Case], carriers: Sequence[Carrier]) -> None:
    """One forward over each case that fills in `values` and `energy`, at all sites where an outlier is alive."""
    wanted = {c.number: set(alive_sites(anatomy, c)) for c in carriers}
    own = sorted({c.channel for c in carriers})
    shown = shown_as(anatomy, ("resid.in", "resid.out"))
    for case in cases:

        def look(site: Site, x: Tensor, _rows: Tensor | None, case: Case = case) -> None:
            for layer, part in shown.get(site, ()):
                kept = x[case.batch.keep.reshape(-1).to(x.device)].detach()
                case.energy[Site(layer, part)] = _energy(kept) - _energy(kept[:, own])
                for c in carriers:
                    if Site(layer, part) in wanted[c.number]:
                        at = case.tokens[c.number].to(x.device)
                        case.values[c.number, Site(layer, part)] = x[at, c.channel].detach().float().cpu()

        with torch.inference_mode(), watch(anatomy, {"resid.in", "resid.out"}, on_activation=look):
            run(anatomy, case.batch.input_ids, case.batch.keep)


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())


def mean_value(cases: Sequence[Case], carrier: Carrier, site: Site) -> float:
    """Mean over the tokens of all cases that carry it."""
    return float(torch.cat([case.values[carrier.number, site] for case in cases]).double().mean())


def other_contexts(
    cases: Sequence[Case], carrier: Carrier, site: Site, *, seed: int
) -> list[Float[Tensor, "token"]]:
    """Per case and token the value that the outlier has in another input, drawn at random; its own where there is no other input."""
    value = torch.cat([case.values[carrier.number, site] for case in cases]).numpy()
    owner = torch.cat([case.batch.sample[case.sample(carrier.number)] for case in cases]).numpy()
    draw = np.random.default_rng(seed)
    given = value.copy()
    for i in range(len(value)):
        others = np.flatnonzero(owner != owner[i])
        if len(others):
            given[i] = value[draw.choice(others)]
    sizes = [len(case.tokens[carrier.number]) for case in cases]
    return list(torch.from_numpy(given).split(sizes))
