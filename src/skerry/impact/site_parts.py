"""The places that are quantized one at a time, and the channels and tokens that stand out at each.

A place is what linear maps read (`attn.in`, `attn.mix`, `mlp.in`, `mlp.down.in`) or a weight part (`w.q`, ...), of one block, all experts
together. Its outlier channels are those that the scan found there; where it found none, the widest 1 % of channels (at least one) by
largest |x|. Its outlier tokens are the rows whose largest |x| is above 20 x the median of that number over rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from skerry.anatomy.dense import READS, Dense, dense_maps
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import ACTIVATION_PARTS, Site
from skerry.corpus.batch import Batch
from skerry.impact.calibrate import check_finite, counted_rows
from skerry.impact.rows import RowEdit, Rows, change_rows
from skerry.outliers.finding import Finding

OUTLIER_SHARE = 0.01
TOKEN_RATIO = 20.0
# Names of maps in one cell of a table; a block may have hundreds of experts.
_NAMES_SHOWN = 6


class SitePart(NamedTuple):
    """One place that is quantized alone.

    Attributes:
        layer: Block number.
        site: Activation part that is read, or weight part.
        maps: The linear maps that read it or hold it.
    """

    layer: int
    site: str
    maps: tuple[Dense, ...]

    @property
    def is_weight(self) -> bool:
        """Whether it is a weight."""
        return self.site.startswith("w.")

    @property
    def names(self) -> str:
        """The maps, as a table's cell."""
        names = [d.name for d in self.maps]
        if len(names) <= _NAMES_SHOWN:
            return ", ".join(names)
        return f"{names[0]}, ... {names[-1]} ({len(names)})"


class Seen(NamedTuple):
    """What one map reads, of the untouched model.

    Attributes:
        size: Largest |x| of every channel, [channel].
        row_size: Largest |x| of every row that counts.
    """

    size: Tensor
    row_size: Tensor


class Outliers(NamedTuple):
    """What stands out in the inputs of maps, by name of the map.

    Attributes:
        channels: Numbers of outlier channels.
        above: Size of a row above which it is an outlier token.
        source: Part to "findings" or "range": where its channels come from.
    """

    channels: dict[str, Int[Tensor, "channel"]]
    above: dict[str, float]
    source: dict[str, Literal["findings", "range"]]


def site_parts(anatomy: Anatomy) -> list[SitePart]:
    """All places, block by block: inputs in the order of the vocabulary, then weights."""
    found: dict[tuple[int, str], list[Dense]] = {}
    for dense in dense_maps(anatomy):
        if dense.layer is None:
            continue
        for site in (dense.reads.part, *dense.pieces):
            found.setdefault((dense.layer, site), []).append(dense)
    order = {part: i for i, part in enumerate([*ACTIVATION_PARTS, *READS])}
    keys = sorted(found, key=lambda key: (key[0], order[key[1]]))
    return [SitePart(layer, site, tuple(found[layer, site])) for layer, site in keys]


def look(anatomy: Anatomy, batches: Iterable[Batch], maps: Sequence[Dense]) -> dict[str, Seen]:
    """One pass over the inputs: sizes of channels and rows of what every map reads. A map that no token reaches is absent.

    Raises:
        BrokenModel: The model gives NaN; the input and the map are named.
    """
    sizes: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    now: list[Batch] = []

    def looking(dense: Dense) -> RowEdit:
        def see(x: Tensor, places: Rows | None) -> Tensor:
            check_finite(x, places, dense, now[0])
            size = counted_rows(x, places).abs()
            if len(size):
                widest = size.amax(0).float()
                old = sizes.get(dense.name)
                sizes[dense.name] = widest if old is None else torch.maximum(old, widest)
                rows.setdefault(dense.name, []).append(size.amax(1).float())
            return x

        return see

    with change_rows(anatomy, {d: looking(d) for d in maps}):
        for batch in batches:
            now[:] = [batch]
            run(anatomy, batch.input_ids, batch.keep)
    return {name: Seen(size, torch.cat(rows[name])) for name, size in sizes.items()}


def find_outliers(
    anatomy: Anatomy, maps: Sequence[Dense], seen: dict[str, Seen], findings: Sequence[Finding]
) -> Outliers:
    """The outlier channels and the size of outlier tokens of every map that tokens reach."""
    known: dict[Site, set[int]] = {}
    for f in findings:
        if f.kind == "activation" and f.channel is not None:
            known.setdefault(Site(f.layer, f.site, f.expert), set()).add(f.channel)
    channels: dict[str, Tensor] = {}
    source: dict[str, Literal["findings", "range"]] = {}
    for dense in maps:
        if dense.name not in seen:
            continue
        size = seen[dense.name].size
        # A place that is the same tensor as an earlier one was found under that one's name.
        routed = Site(dense.layer, dense.reads.part, dense.expert)
        here = {s for site in (dense.reads, routed) for s in (site, anatomy.same_as.get(site, site))}
        numbers = sorted(set().union(*(known.get(s, set()) for s in here)))
        numbers = [n for n in numbers if n < len(size)]
        source[dense.name] = "findings" if numbers else "range"
        count = max(1, math.floor(OUTLIER_SHARE * len(size)))
        channels[dense.name] = torch.tensor(numbers) if numbers else size.topk(count).indices.sort().values
    above = {name: TOKEN_RATIO * float(s.row_size.median()) for name, s in seen.items()}
    return Outliers(channels, above, source)
