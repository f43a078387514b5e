"""What is done to weights: those that write the outlier, and those that are said to start the chain.

super weight   the entries of w.down that carry 90 % of the growth at the birth, set to zero
               control: for each an entry of the same matrix that is as large, of rows without outliers
start          query/key weights shrunk: the 0.1 % largest entries of every w.q and w.k up to the block of the birth, to the median
               |entry| of their matrix; control: as many random entries
               feed-forward weights zeroed: the super weights, without any the whole rows of w.down that write the channels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from skerry.anatomy.change import change_entries, find_entries
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.ablations import ablate_weight
from skerry.causes.carrier import SuperWeight
from skerry.causes.effect_arm import Arm, Chain
from skerry.causes.effect_outlier import random_channels
from skerry.causes.interventions import Intervention
from skerry.errors import UnknownSite
from skerry.outliers.finding import Finding

SUPER, EQUALLY_LARGE = "super weights removed", "equally large weights removed"
QUERY_KEY, RANDOM_QUERY_KEY = "query/key weights shrunk", "random query/key weights shrunk"
FEED_FORWARD = "feed-forward weights zeroed"
# Share of the entries of a query or key projection that counts as large.
LARGE = 0.001
# An equally large entry is one of so many nearest in size, on either side.
NEAREST = 32
Entry = tuple[Site, int, int]


def super_weights(chain: Chain, weights: Sequence[SuperWeight]) -> list[Entry]:
    """The entries that write the outliers where they are born, each once."""
    born = {c.number for c in chain.born}
    found = [w for w in weights if w.carrier in born and w.layer == chain.birth]
    return list(dict.fromkeys((Site(w.layer, "w.down", w.expert), w.row, w.column) for w in found))


def scanned_super_weights(chain: Chain, findings: Sequence[Finding]) -> list[Entry]:
    """The super weights of a scan that write the outliers' channels, in any block."""
    channels = {c.channel for c in chain.born}
    return [
        (Site(f.layer, "w.down", f.expert), f.row, f.column)
        for f in findings
        if f.type == "super weight" and f.row in channels and f.row is not None and f.column is not None
    ]


def weight_arms(
    chain: Chain, weights: Sequence[SuperWeight], findings: Sequence[Finding], notes: list[str]
) -> Iterator[Arm]:
    """Super weights removed, and equally large ones."""
    entries = super_weights(chain, weights)
    if not entries:
        entries = scanned_super_weights(chain, findings)
        notes.append(f"no entries of w.down carry the growth at the birth, so {_removed(len(entries))}")
    if not entries:
        return
    ours = _without(chain.anatomy, entries)
    yield _weight_arm(chain, "super weight", SUPER, "super weight", ours)
    for draw in range(chain.draws):
        ours = _without(chain.anatomy, equally_large(chain, entries, draw))
        yield _weight_arm(chain, "super weight", EQUALLY_LARGE, "super weight", ours, draw)


def _removed(count: int) -> str:
    if not count:
        return "no super weights were removed"
    plural = count > 1
    return (
        f"the {count} super weight{'s' * plural} of the scan that write{'' if plural else 's'} these channels "
        f"{'were' if plural else 'was'} removed"
    )


def start_arms(chain: Chain, weights: Sequence[SuperWeight], notes: list[str]) -> Iterator[Arm]:
    """Large query and key weights shrunk, the writing feed-forward weights zeroed, and controls."""
    if chain.birth < 0:
        notes.append("the outlier is in the embedding already, so no weights of blocks start it")
        return
    anatomy = chain.anatomy
    matrices = [
        site
        for layer in range(chain.birth + 1)
        for part in ("w.q", "w.k")
        if (site := Site(layer, part)) in anatomy.matrices and not anatomy.matrices[site].more
    ]
    if matrices:
        large = [shrink(anatomy, site, largest(anatomy.weight(site))) for site in matrices]
        yield _weight_arm(chain, "start", QUERY_KEY, QUERY_KEY, large)
        for draw in range(chain.draws):
            generator = chain.random(draw)
            some = [shrink(anatomy, site, _random_of(anatomy.weight(site), generator)) for site in matrices]
            yield _weight_arm(chain, "start", RANDOM_QUERY_KEY, QUERY_KEY, some, draw)
    else:
        notes.append("no query and key weights up to the birth can be changed, so they were not shrunk")
    yield from _feed_forward(chain, super_weights(chain, weights), notes)


def _feed_forward(chain: Chain, entries: Sequence[Entry], notes: list[str]) -> Iterator[Arm]:
    rows = sorted({c.channel for c in chain.born})
    if entries:
        yield _weight_arm(chain, "start", FEED_FORWARD, FEED_FORWARD, _without(chain.anatomy, entries))
        for draw in range(chain.draws):
            ours = _without(chain.anatomy, equally_large(chain, entries, draw))
            yield _weight_arm(chain, "start", EQUALLY_LARGE, FEED_FORWARD, ours, draw)
        return
    sites = [s for s in chain.anatomy.matrices if s.layer == chain.birth and s.part == "w.down"]
    if not sites:
        notes.append(f"block {chain.birth} shows no down projection, so no feed-forward weights were zeroed")
        return
    ours = _without_rows(chain.anatomy, sites, rows)
    yield _weight_arm(chain, "start", FEED_FORWARD, FEED_FORWARD, ours)
    for draw in range(chain.draws):
        generator = chain.random(draw)
        some = random_channels(chain.anatomy.dims.hidden, chain.followed, len(rows), generator)
        ours = _without_rows(chain.anatomy, sites, some)
        yield _weight_arm(chain, "start", "random rows zeroed", FEED_FORWARD, ours, draw)


def _weight_arm(
    chain: Chain, group: str, name: str, null: str, changes: list[Intervention], draw: int | None = None
) -> Arm:
    layers = {i.first_layer for i in changes}
    part = "w.q, w.k" if null == QUERY_KEY else "w.down"
    layer = min(layers) if len(layers) == 1 else None
    return Arm(group, name, null, lambda _case, _rerun: changes, min(layers), layer, part, draw=draw)


def _without(anatomy: Anatomy, entries: Sequence[Entry]) -> list[Intervention]:
    by_site: dict[Site, list[tuple[int, int]]] = {}
    for site, row, column in entries:
        by_site.setdefault(site, []).append((row, column))
    return [
        ablate_weight(anatomy, site, [r for r, _ in pairs], [c for _, c in pairs])
        for site, pairs in by_site.items()
    ]


def _without_rows(anatomy: Anatomy, sites: Sequence[Site], rows: Sequence[int]) -> list[Intervention]:
    """Whole rows zero, in every expert."""
    return [
        ablate_weight(anatomy, site, row, torch.arange(anatomy.weight(site).shape[1]))
        for site in sites
        for row in rows
    ]


def equally_large(chain: Chain, entries: Sequence[Entry], draw: int) -> list[Entry]:
    """For every entry another one of its matrix that is about as large, at random; of rows without outliers."""
    generator = chain.random(draw)
    own = [c.channel for c in chain.followed]
    chosen: list[Entry] = []
    for site in dict.fromkeys(e[0] for e in entries):
        weight = chain.anatomy.weight(site).detach().float().cpu().abs()
        free = torch.ones_like(weight, dtype=torch.bool)
        free[own] = False
        index = free.reshape(-1).nonzero()[:, 0]
        order = index[weight.reshape(-1)[index].argsort()]
        sizes, taken = weight.reshape(-1)[order], set[int]()
        for _, row, column in (e for e in entries if e[0] == site):
            at = int(torch.searchsorted(sizes, weight[row, column]))
            near = range(max(0, at - NEAREST), min(len(order), at + NEAREST))
            left = [i for i in near if i not in taken] or [i for i in range(len(order)) if i not in taken]
            if left:
                pick = left[int(torch.randint(len(left), (1,), generator=generator))]
                taken.add(pick)
                chosen.append((site, *divmod(int(order[pick]), weight.shape[1])))
    return chosen


def largest(weight: Tensor) -> Tensor:
    """Flat numbers of the largest entries of a matrix."""
    return weight.detach().abs().reshape(-1).topk(max(1, round(LARGE * weight.numel()))).indices


def _random_of(weight: Tensor, generator: torch.Generator) -> Tensor:
    count = max(1, round(LARGE * weight.numel()))
    return torch.randperm(weight.numel(), generator=generator)[:count]


def shrink(anatomy: Anatomy, site: Site, flat: Tensor) -> Intervention:
    """Entries of a matrix brought to its median size, with their sign."""
    weight = anatomy.weight(site).detach()
    if weight.dim() != 2:
        raise UnknownSite(f"{site} is no matrix, so its large entries cannot be shrunk")
    median = float(weight.float().abs().median())
    rows = torch.div(flat, weight.shape[1], rounding_mode="floor").cpu()
    entries = find_entries(anatomy, site, rows, (flat % weight.shape[1]).cpu())
    return Intervention(
        lambda: change_entries(entries, lambda w: w.sign() * median),
        first_layer=site.layer or 0,
        what=f"shrinking of large weights of {site}",
    )
