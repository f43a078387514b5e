"""Which unit explains most with least: a weight, a neuron, a head, an expert or a whole sublayer.

For one channel a neuron and its entry of row c of the down projection contribute the same.  They differ in what else the neuron writes:
the unit is the weight when that entry has more than half of its column's squared norm (the super weight of Yu et al. 2024), else the
neuron, which writes several channels.  A unit is said to carry a change alone when the change without it is at most half as large:
|1 - share| <= 0.5.  `best` is the finest kind whose first unit does so, in the order weight, neuron or head, expert, sublayer; when
none does, the kind whose first unit has the largest share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.growth_block import UNEXPLAINED, Expansion
from skerry.causes.growth_writers import Units

CARRIED = 0.9
ALONE = 0.5
DOMINANT = 0.5
# Longer lists of entries are no super weights; the count of `units` still tells how many there are.
MOST_WEIGHTS = 64
_FINENESS = {"weight": 0, "neuron": 1, "head": 1, "expert": 2, "sublayer": 3}


def order(shares: Float[Tensor, "unit"]) -> Tensor:
    """Units by falling share."""
    return shares.argsort(descending=True, stable=True)


def count_to(shares: Float[Tensor, "unit"], goal: float = CARRIED) -> int | None:
    """How many units, largest first, carry that much; None when not even all that write in its direction do."""
    reached = (shares[order(shares)].clamp_min(0).cumsum(0) >= goal).nonzero()
    return int(reached[0, 0]) + 1 if len(reached) else None


def unit_rows(
    anatomy: Anatomy, layer: int | None, channel: int, expansion: Expansion, found: Sequence[Units]
) -> list[dict[str, Any]]:
    """Rows of the table `units` without carrier and event."""
    rows = list(_rows(anatomy, layer, channel, expansion, found))
    best = _best(rows)
    return [
        {"layer": layer, **{k: v for k, v in row.items() if k != "eligible"}, "best": i == best}
        for i, row in enumerate(rows)
    ]


def _rows(
    anatomy: Anatomy, layer: int | None, channel: int, expansion: Expansion, found: Sequence[Units]
) -> Iterator[dict[str, Any]]:
    total = float(expansion.change.mean())
    for units in found:
        shares = units.means / total
        first = int(shares.argmax())
        expert, index = units.names[first]
        row: dict[str, Any] = {"unit": units.level, "expert": expert, "index": index, "part": units.part}
        row |= {"count": count_to(shares), "share": float(shares[first]), "eligible": True}
        if units.level == "neuron" and index is not None:
            yield {**row, "unit": "weight", "eligible": dominates(anatomy, layer, expert, channel, index)}
        yield row
    parts = [part for part in expansion.terms if part != UNEXPLAINED]
    if parts:
        shares = torch.tensor([expansion.part_shares[p] for p in parts], dtype=torch.float64)
        first = int(shares.argmax())
        whole: dict[str, Any] = {"unit": "sublayer", "part": parts[first], "share": float(shares[first])}
        yield {**whole, "expert": None, "index": None, "count": count_to(shares), "eligible": True}


def _best(rows: Sequence[dict[str, Any]]) -> int | None:
    eligible = [i for i, row in enumerate(rows) if row["eligible"]]
    alone = [i for i in eligible if abs(1 - rows[i]["share"]) <= ALONE]
    if alone:
        return min(alone, key=lambda i: (_FINENESS[rows[i]["unit"]], abs(1 - rows[i]["share"])))
    # Shares beyond 1 that others cancel explain nothing: the coarsest kind comes first among equals.
    coarse = [i for i in eligible if rows[i]["unit"] == "sublayer"]
    within = [i for i in eligible if 0 < rows[i]["share"] < 1]
    return max(within, key=lambda i: rows[i]["share"], default=coarse[0] if coarse else None)


def dominates(anatomy: Anatomy, layer: int | None, expert: int | None, channel: int, neuron: int) -> bool:
    """Whether one entry has most of what its neuron writes: w[c, k]^2 > half of its column's."""
    column = anatomy.weight(Site(layer, "w.down", expert))[:, neuron].double()
    return bool(column[channel] ** 2 > DOMINANT * column.square().sum())


def weight_rows(
    anatomy: Anatomy, layer: int, channel: int, total: float, units: Units
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the table `growth_weights` without carrier: the smallest set of entries that carries the growth, and what to say of it."""
    shares = units.means / total
    goal, notes = CARRIED, []
    num = count_to(shares, goal)
    if num is None:
        goal = CARRIED * float(shares.sum())
        num = count_to(shares, goal) or 0
        notes.append(
            f"no set of entries of w.down in block {layer} carries 90 % of the growth; listed are those of {goal:.0%}"
        )
    if num > MOST_WEIGHTS:
        notes.append(
            f"the growth in block {layer} is spread over {num} entries of w.down: the first {MOST_WEIGHTS} are listed, none is a super weight"
        )
    rows, cumulative = [], 0.0
    for rank, unit in enumerate(order(shares)[: min(num, MOST_WEIGHTS)].tolist()):
        expert, neuron = units.names[unit]
        cumulative += float(shares[unit])
        value = float(anatomy.weight(Site(layer, "w.down", expert))[channel, neuron])
        row = {"layer": layer, "expert": expert, "row": channel, "column": neuron, "value": value}
        rows.append({**row, "rank": rank, "share": float(shares[unit]), "cumulative": cumulative})
    return rows, notes
