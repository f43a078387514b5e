"""Whole activation vectors of a few tokens: those that carry an outlier, and others to compare them with.

A trace must look at every channel of some places (all neurons of the block where an outlier is born), but only at few tokens. At most
`limit` rows of either kind are kept, as many from one input as from another: with n rows wanted, every input gives its first token of a
random order before any gives its second. One forward over the text serves all outliers and all sites at once; batches without a chosen
row are not run.

Limit: with every token an outlier's own (an outlier channel may have them all) there are no others: those tensors have no rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import STREAMED, Site
from skerry.anatomy.watch import watch
from skerry.causes.carrier import Places
from skerry.corpus.batch import Batch

LIMIT = 512


@dataclass(frozen=True)
class Gathered:
    """Activation vectors at an outlier's tokens and at other tokens, float32 in main memory.

    Rows are in the order of the text, the same at every site. At the site of a routed expert the rows that were not routed to it are
    NaN. A site that the model does not have is not in the mappings.

    Attributes:
        at: Site to the vectors of the outlier's tokens.
        sample_at: Input that each row of `at` comes from.
        other: Site to the vectors of tokens drawn from `Places.others` that do not carry this outlier.
        sample_other: Input that each row of `other` comes from.
        ids_at: Token id of each row of `at`, where known.
        positions_at: Position in its input of each row of `at`, where known.
    """

    at: dict[Site, Float[Tensor, "row _"]]
    sample_at: Int[Tensor, "row"]
    other: dict[Site, Float[Tensor, "row2 _"]]
    sample_other: Int[Tensor, "row2"]
    ids_at: Int[Tensor, "row"] | None = None
    positions_at: Int[Tensor, "row"] | None = None


@dataclass(frozen=True)
class _Chosen:
    """Some tokens of the text: `token[i]` is a flat token of batch `batch[i]`, from input `sample[i]`; in the order of the text."""

    batch: Int[Tensor, "row"]
    token: Int[Tensor, "row"]
    sample: Int[Tensor, "row"]


def gather(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    places: Places,
    number: int,
    sites: Iterable[Site],
    *,
    limit: int = LIMIT,
) -> Gathered:
    """Activation vectors for one outlier; `gather_many` serves several with the same forward.

    Args:
        anatomy: The model.
        batches: The text that `places` counts.
        places: Which tokens carry what.
        number: Number of the outlier.
        sites: Activation sites.
        limit: Most rows of either kind.
    """
    return gather_many(anatomy, batches, places, {number: sites}, limit=limit)[number]


def gather_many(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    places: Places,
    wanted: Mapping[int, Iterable[Site]],
    *,
    limit: int = LIMIT,
) -> dict[int, Gathered]:
    """Activation vectors for several outliers, one forward over the text.

    Args:
        anatomy: The model.
        batches: The text that `places` counts.
        places: Which tokens carry what.
        wanted: Number of an outlier to the activation sites to read for it.
        limit: Most rows of either kind, per outlier.

    Raises:
        ValueError: A site is a weight or is never stored (attention logits and weights).
    """
    sites = {number: _readable(anatomy, found) for number, found in wanted.items()}
    chosen = {
        (number, kind): _choose(batches, list(_candidates(places, number, kind)), limit)
        for number in sites
        for kind in ("at", "other")
    }
    rows = {
        (number, kind, site): _Rows(len(chosen[number, kind].token))
        for number, found in sites.items()
        for site in found
        for kind in ("at", "other")
    }
    widths = _read(anatomy, batches, chosen, rows)

    def vectors(number: int, kind: str) -> dict[Site, Tensor]:
        hidden = anatomy.dims.hidden
        return {s: rows[number, kind, s].tensor(widths.get(s.part, hidden)) for s in sites[number]}

    result: dict[int, Gathered] = {}
    for n in sites:
        at, other = chosen[n, "at"], chosen[n, "other"]
        ids, positions = _tokens(batches, at)
        result[n] = Gathered(
            vectors(n, "at"), at.sample, vectors(n, "other"), other.sample, ids_at=ids, positions_at=positions
        )
    return result


def _tokens(batches: Sequence[Batch], chosen: _Chosen) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"]]:
    """Token id and position of chosen tokens."""
    ids, positions = torch.zeros_like(chosen.token), torch.zeros_like(chosen.token)
    for i, batch in enumerate(batches):
        here = chosen.batch == i
        ids[here] = batch.input_ids.flatten().to(torch.int64)[chosen.token[here]]
        positions[here] = chosen.token[here] % batch.input_ids.shape[1]
    return ids, positions


class _Rows:
    """Vectors of one site, filled as they come by; NaN where none came."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.values: Tensor | None = None

    def put(self, places: Tensor, x: Tensor) -> None:
        if self.values is None:
            self.values = torch.full((self.num, x.shape[-1]), torch.nan)
        self.values[places] = x.float().cpu()

    def tensor(self, width: int) -> Tensor:
        return torch.full((self.num, width), torch.nan) if self.values is None else self.values


def _readable(anatomy: Anatomy, sites: Iterable[Site]) -> list[Site]:
    """The sites that the model has, each once.

    Raises:
        ValueError: One can never be gathered.
    """
    asked = list(dict.fromkeys(sites))
    if wrong := [str(s) for s in asked if s.is_weight or s.part in STREAMED]:
        raise ValueError(f"gather reads activations that have one vector per token, not {', '.join(wrong)}")
    known = set(anatomy.activation_sites)
    return [s for s in asked if s in known]


def _candidates(places: Places, number: int, kind: str) -> Iterator[Tensor]:
    """Batch by batch the flat tokens to choose from."""
    for carried, others in zip(places.carried, places.others, strict=True):
        own = carried.get(number, others[:0])
        yield own if kind == "at" else others[~torch.isin(others, own)]


def _choose(batches: Sequence[Batch], tokens: Sequence[Tensor], limit: int, seed: int = 0) -> _Chosen:
    """At most `limit` tokens, evenly from all inputs, in the order of the text."""
    empty = torch.zeros(0, dtype=torch.int64)
    batch = torch.cat([empty, *(torch.full_like(t, i) for i, t in enumerate(tokens))])
    token = torch.cat([empty, *tokens])
    sample = torch.cat(
        [empty, *(b.sample[t // b.input_ids.shape[1]] for b, t in zip(batches, tokens, strict=False))]
    )
    if len(token) > limit:
        order = torch.randperm(len(token), generator=torch.Generator().manual_seed(seed))
        turn = torch.zeros_like(token)
        turn[order] = _turn(sample[order])
        keep = (turn * len(token) + torch.argsort(order)).argsort()[:limit].sort().values
        batch, token, sample = batch[keep], token[keep], sample[keep]
    return _Chosen(batch, token, sample.to(torch.int64))


def _turn(group: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """How many earlier rows are of the same group."""
    order = group.argsort(stable=True)
    ordered = group[order]
    starts = torch.searchsorted(ordered, ordered)
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(group)) - starts
    return turn


def _read(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    chosen: Mapping[tuple[int, str], _Chosen],
    rows: Mapping[tuple[int, str, Site], _Rows],
) -> dict[str, int]:
    """Fill the rows: one forward over the batches that hold a chosen token; the width of each part that was seen."""
    shown: dict[Site, list[tuple[int, str, str, _Rows]]] = defaultdict(list)
    for (number, kind, site), into in rows.items():
        shown[anatomy.same_as.get(site, site)].append((number, kind, site.part, into))
    widths: dict[str, int] = {}
    here: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def look(site: Site, x: Tensor, routed: Tensor | None) -> None:
        for number, kind, part, into in shown.get(site, ()):
            widths[part] = x.shape[-1]
            place, token = here[number, kind]
            if routed is not None:
                # The rows of an expert are its tokens, ascending.
                routed = routed.cpu()
                hit = torch.isin(token, routed)
                place, token = place[hit], torch.searchsorted(routed, token[hit])
            if len(place):
                into.put(place, x.index_select(0, token.to(x.device)))

    parts = {site.part for _, _, site in rows}
    with torch.inference_mode(), watch(anatomy, parts, on_activation=look):
        for i, batch in enumerate(batches):
            here.clear()
            for key, c in chosen.items():
                place = (c.batch == i).nonzero()[:, 0]
                here[key] = place, c.token[place]
            if any(len(place) for place, _ in here.values()):
                run(anatomy, batch.input_ids, batch.keep)
    return widths
