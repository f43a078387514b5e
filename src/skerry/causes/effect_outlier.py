"""What is done to the outlier itself: at its birth, in doses, and everywhere.

    birth     its cells behind the block where it is born: 0; their mean over all inputs; the value of another input; and 0 behind every
              block where it is alive, since a model may write again what was taken away
    dose      the same cells held at 0, 0.25, 0.5, 1, 2 times their untouched values, behind every block where they are alive
    removal   the cells of all outliers, behind every block where they are alive: 0; their mean there

Controls of birth: at the same tokens random other channels are set to zero (in every block, for the last arm); or as large a change is
made in a random direction that leaves outlier channels alone. Of dose: random other channels times the same factor at the birth. Of removal, behind the same blocks: as many random
values are set to zero; or so many random values, of all channels but the outliers', that they hold as much energy. The last is left out,
and that is said, where outliers hold more than half of the energy of all others: to take that away is to take away everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from skerry.anatomy.change import Edit
from skerry.anatomy.sites import Site
from skerry.causes.carrier import Carrier
from skerry.causes.effect_arm import Arm, Chain, Make, edits
from skerry.causes.effect_case import Case, Cells, alive_sites, birth_site, mean_value, other_contexts
from skerry.causes.interventions import Intervention
from skerry.causes.rerun import Rerun

ZERO, MEAN, OTHER, EVERYWHERE = "zero", "mean", "value of another input", "zero in every block"
RANDOM_CHANNEL, RANDOM_DIRECTION = "random channel to zero", "random direction, as large a change"
RANDOM_EVERYWHERE = "random channel to zero in every block"
REMOVED, CONSTANT = "outliers zeroed", "outliers to mean"
EQUALLY_MANY, EQUAL_ENERGY = "random values, equally many", "random values, equal energy"
DOSES = (0.0, 0.25, 0.5, 1.0, 2.0)
# Random values of equal energy are drawn only where outliers hold at most so much of the energy of all other values.
MOST_ENERGY = 0.5


def birth_arms(chain: Chain) -> Iterator[Arm]:
    """The outlier's cells where it is born, and controls."""
    site, layer = birth_site(chain.born[0]), max(chain.birth, 0)
    width = chain.anatomy.dims.hidden

    def arm(name: str, make: Make, draw: int | None = None) -> Arm:
        return Arm("birth", name, "birth", make, layer, layer, site.part, draw=draw)

    def everywhere(name: str, channels: Sequence[int], draw: int | None = None) -> Arm:
        make = _zero_everywhere(chain, channels)
        return Arm("birth", name, "birth in every block", make, layer, None, "resid.out", draw=draw)

    mean = {c.number: mean_value(chain.cases, c, site) for c in chain.born}
    yield arm(ZERO, _at_birth(chain, lambda _case: torch.zeros(())))
    yield arm(MEAN, _at_birth(chain, lambda case: _of_cells(case, chain.born, mean)))
    if sum(len(case.batch.input_ids) for case in chain.cases) > 1:
        given = [other_contexts(chain.cases, c, site, seed=chain.seed) for c in chain.born]
        yield arm(OTHER, _at_birth(chain, lambda case: torch.cat([of[case.number] for of in given])))
    yield everywhere(EVERYWHERE, [c.channel for c in chain.born])
    for draw in range(chain.draws):
        generator = chain.random(draw)
        channels = random_channels(width, chain.followed, len(chain.born), generator)
        yield arm(RANDOM_CHANNEL, _other_channels(chain, channels, 0.0), draw)
        yield everywhere(RANDOM_EVERYWHERE, channels, draw)
        yield arm(RANDOM_DIRECTION, direction_at_birth(chain, draw), draw)


def dose_arms(chain: Chain) -> Iterator[Arm]:
    """The outlier's cells times a factor, and controls."""
    site, layer = birth_site(chain.born[0]), max(chain.birth, 0)
    for dose in DOSES:

        def arm(name: str, make: Make, draw: int | None = None, dose: float = dose) -> Arm:
            where = None if draw is None else layer
            return Arm("dose", name, f"dose {dose:g}", make, layer, where, site.part, dose, draw)

        yield arm(f"outlier x {dose:g}", _held(chain, dose))
        for draw in range(chain.draws if dose != 1.0 else 0):
            generator = chain.random(draw)
            channels = random_channels(chain.anatomy.dims.hidden, chain.followed, len(chain.born), generator)
            yield arm(f"random channel x {dose:g}", _other_channels(chain, channels, dose), draw)


def random_channels(
    width: int, carriers: Sequence[Carrier], count: int, generator: torch.Generator
) -> list[int]:
    """Channels without an outlier; fewer where there are no more."""
    own = {c.channel for c in carriers}
    return [j for j in torch.randperm(width, generator=generator).tolist() if j not in own][:count]


def without_outlier(chain: Chain) -> Make:
    """Zero in every block."""
    return _zero_everywhere(chain, [c.channel for c in chain.born])


def direction_at_birth(chain: Chain, draw: int) -> Make:
    """The change of a control: as large, in a random direction."""
    generator = torch.Generator().manual_seed(chain.seed * 104729 + draw)
    direction = torch.randn(chain.anatomy.dims.hidden, generator=generator)
    direction[[c.channel for c in chain.followed]] = 0.0
    return _direction(chain, direction / direction.norm())


def _at_birth(chain: Chain, values: Callable[[Case], Tensor]) -> Make:
    site = birth_site(chain.born[0])

    def make(case: Case, _rerun: Rerun) -> list[Intervention]:
        edit = case.cells(chain.born).edit(_put(values(case)))
        return edits(chain.anatomy, {site: edit}, f"change of outliers at {site}")

    return make


def _of_cells(case: Case, carriers: Sequence[Carrier], mean: Mapping[int, float]) -> Tensor:
    """The mean of each outlier, once for each of its cells."""
    return torch.cat([torch.full((len(case.tokens[c.number]),), mean[c.number]) for c in carriers])


def _held(chain: Chain, factor: float) -> Make:
    """The outliers' cells are a factor times their untouched values, behind every block where they are alive."""

    def make(case: Case, _rerun: Rerun) -> list[Intervention]:
        changes: dict[Site, Edit] = {}
        for site in sorted({s for c in chain.born for s in alive_sites(chain.anatomy, c)}):
            own = [c for c in chain.born if (c.number, site) in case.values]
            if own:
                value = torch.cat([case.values[c.number, site] for c in own])
                changes[site] = case.cells(own).edit(_put(factor * value))
        return edits(chain.anatomy, changes, f"outlier x {factor:g}")

    return make


def _other_channels(chain: Chain, channels: Sequence[int], factor: float) -> Make:
    """At the tokens of each outlier another channel times a factor."""
    site = birth_site(chain.born[0])

    def make(case: Case, _rerun: Rerun) -> list[Intervention]:
        cells = _cells_of(case, list(zip(chain.born, channels, strict=False)))
        return edits(chain.anatomy, {site: cells.edit(lambda x: x * factor)}, "change of random channels")

    return make


def _zero_everywhere(chain: Chain, channels: Sequence[int]) -> Make:
    """At the tokens of each outlier a channel is zero behind every block where the outlier is alive."""
    pairs = list(zip(chain.born, channels, strict=False))

    def make(case: Case, _rerun: Rerun) -> list[Intervention]:
        changes: dict[Site, Edit] = {}
        for site in sorted({s for c, _ in pairs for s in alive_sites(chain.anatomy, c)}):
            if site in chain.anatomy.taps:
                here = [(c, j) for c, j in pairs if site in alive_sites(chain.anatomy, c)]
                changes[site] = _cells_of(case, here).edit(torch.zeros_like)
        return edits(chain.anatomy, changes, "channels set to zero in every block")

    return make


def _cells_of(case: Case, pairs: Sequence[tuple[Carrier, int]]) -> Cells:
    """At the tokens of each outlier a channel."""
    token = torch.cat([case.tokens[c.number] for c, _ in pairs])
    return Cells(token, torch.cat([torch.full_like(case.tokens[c.number], j) for c, j in pairs]))


def _direction(chain: Chain, direction: Tensor) -> Make:
    """At every token of an outlier a change as large as setting it to zero."""
    site = birth_site(chain.born[0])

    def make(case: Case, _rerun: Rerun) -> list[Intervention]:
        cells = case.cells(chain.born)
        token = cells.token.unique()

        def edit(x: Tensor, _rows: Tensor | None) -> Tensor:
            at = token.to(x.device)
            own = torch.zeros_like(x).index_put(
                (cells.token.to(x.device), cells.channel.to(x.device)), x.new_ones(())
            )
            size = torch.linalg.vector_norm((x * own)[at].float(), dim=-1, keepdim=True)
            return x.index_add(0, at, (size * direction.to(x.device)).to(x))

        return edits(chain.anatomy, {site: edit}, "a change in a random direction")

    return make


def removal_arms(chain: Chain, notes: list[str]) -> Iterator[Arm]:
    """All outliers, behind every block where they are alive, and controls."""
    anatomy = chain.anatomy
    at: dict[Site, list[Carrier]] = {}
    for carrier in chain.followed:
        for site in alive_sites(anatomy, carrier):
            if site in anatomy.taps:
                at.setdefault(site, []).append(carrier)
    if not at:
        return
    first = min(site.layer or 0 for site in at)
    mean = {site: {c.number: mean_value(chain.cases, c, site) for c in own} for site, own in at.items()}

    def everywhere(values: Callable[[Case, Site], Tensor]) -> Make:
        def make(case: Case, _rerun: Rerun) -> list[Intervention]:
            changes = {site: case.cells(own).edit(_put(values(case, site))) for site, own in at.items()}
            return edits(anatomy, changes, "change of all outliers")

        return make

    def arm(name: str, make: Make, draw: int | None = None) -> Arm:
        return Arm("removal", name, "removal", make, first, None, "resid.out", draw=draw)

    yield arm(REMOVED, everywhere(lambda _case, _site: torch.zeros(())))
    yield arm(CONSTANT, everywhere(lambda case, site: _of_cells(case, at[site], mean[site])))
    for draw in range(chain.draws):
        yield arm(EQUALLY_MANY, _random_values(chain, at, draw, by_energy=False), draw)
    share = max(energy_share(chain.cases, site, own) for site, own in at.items())
    if share > MOST_ENERGY:
        notes.append(
            f"outliers hold up to {share:.3g} times the energy of all other values together, so the control {EQUAL_ENERGY!r} could not be drawn"
        )
        return
    for draw in range(chain.draws):
        yield arm(EQUAL_ENERGY, _random_values(chain, at, draw, by_energy=True), draw)


def energy_share(cases: Sequence[Case], site: Site, carriers: Sequence[Carrier]) -> float:
    """Energy of the outliers' cells over the energy of all values in channels without outliers."""
    held = sum(float(c.values[k.number, site].double().square().sum()) for c in cases for k in carriers)
    return held / max(sum(case.energy[site] for case in cases), 1e-30)


def _put(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: values.to(x).expand(x.shape)


def _random_values(chain: Chain, at: Mapping[Site, Sequence[Carrier]], draw: int, *, by_energy: bool) -> Make:
    own_channels = sorted({c.channel for c in chain.followed})

    def make(case: Case, _rerun: Rerun) -> list[Intervention]:
        seed = 10**6 * (chain.seed * 7919 + draw) + 10**3 * case.number
        changes: dict[Site, Edit] = {}
        for site, own in at.items():
            changes[site] = zero_random(
                case.batch.keep.reshape(-1),
                case.cells(own),
                own_channels,
                seed + (site.layer or 0),
                by_energy=by_energy,
            )
        return edits(chain.anatomy, changes, "random values set to zero")

    return make


def zero_random(
    keep: Bool[Tensor, "token"], cells: Cells, own: Sequence[int], seed: int, *, by_energy: bool
) -> Edit:
    """Random values set to zero, the same ones in each forward.

    Args:
        keep: False at padding, which is left alone.
        cells: The outliers' values.
        own: Channels left alone.
        seed: Of the choice.
        by_energy: As many values as hold the energy of the cells; else as many as there are cells.
    """

    def edit(x: Tensor, _rows: Tensor | None) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        free = keep[:, None].expand(x.shape).clone()
        free[:, list(own)] = False
        index = free.reshape(-1).nonzero()[:, 0]
        index = index[torch.randperm(len(index), generator=draw)].to(x.device)
        count = len(cells.token)
        if by_energy:
            held = x.reshape(-1)[index].double().square().cumsum(0)
            needed = x[cells.token.to(x.device), cells.channel.to(x.device)].double().square().sum()
            count = int(torch.searchsorted(held, needed)) + 1
        return x.reshape(-1).index_fill(0, index[:count], 0.0).reshape(x.shape)

    return edit
