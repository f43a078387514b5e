"""The outlier is taken away on one way only, and sinks are taken out.

Two runs are recorded at the tokens of the outlier, in all blocks after its birth: the untouched one and the one
in which the outlier is zero behind every block where it is alive.

    only keys           untouched, but keys there are those of the run without the outlier
    only values         untouched, but values there are those of that run
    only the residual   without the outlier, but keys and values there are those of the untouched run

Control: the same three ways for a change as large in a random direction at the birth. In a causal model with the outlier at the first
token, keys and values are all that other tokens receive of it, so the third way changes nothing but that token.

    no attention on sinks    `ablate_sink` in every block with sinks; control: as many other positions
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from skerry.anatomy.change import Edit
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.ablations import ablate_sink
from skerry.causes.effect_arm import Arm, Chain, Make, edits
from skerry.causes.effect_case import Case
from skerry.causes.effect_outlier import direction_at_birth, without_outlier
from skerry.causes.interventions import Intervention
from skerry.causes.rerun import Rerun
from skerry.causes.sinks import Sinks
from skerry.causes.spread_read import shown_as

KEYS, VALUES, RESIDUAL = "only keys", "only values", "only the residual"
NO_SINKS, NO_OTHERS = "no attention on sinks", "no attention on as many other positions"
Record = dict[Site, Tensor]


def path_arms(chain: Chain, notes: list[str]) -> Iterator[Arm]:
    """The three ways, and the same for random changes."""
    taps, blocks = chain.anatomy.taps, range(chain.birth + 1, chain.anatomy.dims.num_layers)
    with_keys = [i for i in blocks if Site(i, "attn.k") in taps and Site(i, "attn.v") in taps]
    if not with_keys:
        notes.append("no block after the birth shows keys and values, so no paths were told apart")
        return
    yield from _ways(chain, with_keys, without_outlier(chain), None)
    for draw in range(chain.draws):
        yield from _ways(chain, with_keys, direction_at_birth(chain, draw), draw)


def _ways(chain: Chain, blocks: Sequence[int], change: Make, draw: int | None) -> Iterator[Arm]:
    records = _Records(chain, blocks, change)
    ways = {
        KEYS: lambda case, rerun: records.put(case, records.changed(case, rerun), ("attn.k",)),
        VALUES: lambda case, rerun: records.put(case, records.changed(case, rerun), ("attn.v",)),
        RESIDUAL: lambda case, rerun: [
            *change(case, rerun),
            *records.put(case, records.untouched(case, rerun), ("attn.k", "attn.v")),
        ],
    }
    for name, make in ways.items():
        told = name if draw is None else f"random change, {name}"
        yield Arm("path", told, name, make, max(chain.birth, 0), max(chain.birth, 0), "attn", draw=draw)


class _Records:
    """Keys and values at the outlier's tokens, of the latest case only."""

    def __init__(self, chain: Chain, blocks: Sequence[int], change: Make) -> None:
        self.chain, self.change = chain, change
        self.sites = {Site(i, part) for i in blocks for part in ("attn.k", "attn.v")}
        self.shown = shown_as(chain.anatomy, ("attn.k", "attn.v"))
        self._kept: dict[str, tuple[int, Record]] = {}

    def changed(self, case: Case, rerun: Rerun) -> Record:
        """Those of the run with the change."""
        return self._of("changed", case, rerun, self.change(case, rerun))

    def untouched(self, case: Case, rerun: Rerun) -> Record:
        """Those of the untouched model."""
        return self._of("untouched", case, rerun, [])

    def _of(self, name: str, case: Case, rerun: Rerun, changes: Sequence[Intervention]) -> Record:
        if name in self._kept and self._kept[name][0] == case.number:
            return self._kept[name][1]
        token, found = self._tokens(case), Record()

        def look(site: Site, x: Tensor, _rows: Tensor | None) -> None:
            for layer, part in self.shown.get(site, ()):
                if Site(layer, part) in self.sites:
                    found[Site(layer, part)] = x[token.to(x.device)].detach().clone()

        first = max(self.chain.birth, 0)
        reading = watch(self.chain.anatomy, {"attn.k", "attn.v"}, on_activation=look)
        with torch.inference_mode():
            rerun.hidden(*changes, watch=[reading], first_layer=first)
        self._kept[name] = case.number, found
        return found

    def put(self, case: Case, record: Record, parts: Sequence[str]) -> list[Intervention]:
        """Give the model recorded keys or values."""
        token = self._tokens(case)

        def edit(site: Site) -> Edit:
            return lambda x, _rows: x.index_copy(0, token.to(x.device), record[site].to(x))

        changes = {site: edit(site) for site in sorted(record) if site.part in parts}
        return edits(self.chain.anatomy, changes, "recorded keys or values")

    def _tokens(self, case: Case) -> Tensor:
        return torch.cat([case.tokens[c.number] for c in self.chain.born]).unique()


def sink_arms(chain: Chain, notes: list[str]) -> Iterator[Arm]:
    """Sinks taken out of attention, and as many other positions."""
    anatomy = chain.anatomy
    layers = [i for i in chain.sinks.layers if Site(i, "attn.mix") in anatomy.taps and i in anatomy.attention]
    if not layers:
        notes.append("no block has attention sinks that can be taken out")
        return

    def arm(name: str, of: Callable[[Case], Sinks], draw: int | None = None) -> Arm:
        def make(case: Case, _rerun: Rerun) -> list[Intervention]:
            return [ablate_sink(anatomy, of(case), case.batch, layers)]

        return Arm(
            "sink", name, "sink", make, layers[0], None, "attn.mix", None, draw, frozenset({"sink mass"})
        )

    yield arm(NO_SINKS, lambda _case: chain.sinks)
    for draw in range(chain.draws):
        yield arm(NO_OTHERS, partial(_other_positions, chain, layers, draw), draw)


def _other_positions(chain: Chain, layers: Sequence[int], draw: int, case: Case) -> Sinks:
    """As many positions as an input has sinks on average, at random among those that are no sink in any of its inputs."""
    generator = chain.random(draw)
    length = int(case.batch.keep.sum(1).min())
    positions: dict[int, frozenset[int]] = {}
    for layer in layers:
        mask = chain.sinks.mask(layer, case.batch)
        place = case.batch.keep.cumsum(1) - 1
        sunk = set(place[mask].tolist())
        free = [i for i in range(length) if i not in sunk] or [
            i for i in range(place.shape[1]) if i not in sunk
        ]
        count = max(1, round(float(mask.sum(1).float().mean())))
        order = torch.randperm(len(free), generator=generator).tolist()
        positions[layer] = frozenset(free[i] for i in order[:count])
    return Sinks(positions)
