"""How outliers decide what pruning removes: the threshold between kept and removed, with and without them.

Two kinds of outlier pull at a threshold. Outlier weights (|w| above 6 standard deviations of their part) are what magnitude always keeps.
Outlier channels (the 1 % of input channels of largest norm) inflate Wanda's score |w| ||x|| and SparseGPT's w^2 / U_jj^2 of every weight that
reads them: those weights are kept whatever they are, and weights elsewhere go in their place. With t the largest score that is removed
and t' the same if scores are compared without the outlier channels, at the same sparsity,

    band = {weights outside the outlier channels with t' < score <= t}:   removed because of the channels

Limit: scores that do not read the inputs (magnitude) of random weights have t = t' but for chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.dense import Dense
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.impact.prune import Chosen
from skerry.impact.pruning_scores import METHODS, kth_smallest, magnitude, num_removed
from skerry.measure.gram import ColumnNorms, input_of

OUTLIER_STDS = 6.0
"""A weight is an outlier above so many standard deviations of its part."""
CHANNEL_SHARE = 0.01
"""Share of the input channels, those of largest norm, that count as outlier channels."""


class Thresholds(NamedTuple):
    """Largest removed score, for every group of weights that are compared; broadcast against [row column].

    Attributes:
        all: With all channels.
        without: Without outlier channels, at the same sparsity; below every score where nothing would be removed.
    """

    all: Float[Tensor, "row column"]
    without: Float[Tensor, "row column"]


def outlier_channels(norms: Float[Tensor, "column"]) -> Bool[Tensor, "column"]:
    """The channels of largest norm: 1 % of the width, at least one; none where no input was seen."""
    found = torch.zeros_like(norms, dtype=torch.bool)
    if float(norms.max()) > 0:
        found[norms.topk(max(1, round(CHANNEL_SHARE * len(norms)))).indices] = True
    return found


def outlier_weights(weight: Float[Tensor, "row column"]) -> Bool[Tensor, "row column"]:
    """Weights above 6 standard deviations of the part that they are given as."""
    size = magnitude(weight)
    return size > OUTLIER_STDS * weight.to(size).std(correction=0)


def model_thresholds(
    anatomy: Anatomy, maps: Sequence[Dense], norms: Mapping[Site, ColumnNorms], sparsity: float
) -> Thresholds:
    """Thresholds of magnitude compared over all maps."""
    rest = {d: ~outlier_channels(_norms(anatomy, d, norms)) for d in maps}
    total = sum(d.weight.numel() for d in maps)
    total_rest = sum(len(d.weight) * int(rest[d].sum()) for d in maps)
    count, count_rest = num_removed(sparsity, total), num_removed(sparsity, total_rest)
    whole = kth_smallest(lambda: (magnitude(d.weight) for d in maps), count) if count else -1.0
    without = (
        kth_smallest(lambda: (magnitude(d.weight)[:, rest[d]] for d in maps), count_rest)
        if count_rest
        else -1.0
    )
    return Thresholds(torch.full((1, 1), whole), torch.full((1, 1), without))


def conflict_rows(
    anatomy: Anatomy,
    chosen: Chosen,
    norms: Mapping[Site, ColumnNorms],
    *,
    method: str,
    sparsity: float,
    block: int,
    common: Thresholds | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table `pruning_conflict`, one per weight part of a map.

    Args:
        anatomy: The model.
        chosen: What was decided about the map.
        norms: Column norms of the untouched model by input.
        method: A name of `impact.pruning_scores.METHODS`.
        sparsity: Asked of the whole model.
        block: Columns that are compared together, for SparseGPT.
        common: Thresholds over all maps, for a method that compares over the model.
    """
    dense, mask, scores, share = chosen
    channels = outlier_channels(_norms(anatomy, dense, norms)).to(scores.device)
    thresholds = common
    if thresholds is None:
        thresholds = _thresholds(scores, mask, channels, share, METHODS[method].scope, block)
    rows = []
    for part in dense.pieces:
        number = dense.rows(part)
        kept, weight, score = mask[number], dense.weight[number], scores[number]
        outliers = outlier_weights(weight)
        above, above_without = (t[number] if len(t) > 1 else t for t in thresholds)
        rest = score[:, ~channels]
        t, u = (x[:, ~channels] if x.shape[1] > 1 else x for x in (above, above_without))
        band = int(((rest > u) & (rest <= t)).sum()) - int(((rest > t) & (rest <= u)).sum())
        rows.append(
            {
                "layer": dense.layer,
                "site": part,
                "expert": _expert(anatomy, dense, part),
                "method": method,
                "sparsity": sparsity,
                "num_weights": weight.numel(),
                "num_outlier_weights": int(outliers.sum()),
                "share_outliers_kept": _share(kept[outliers]),
                "share_rest_kept": _share(kept[~outliers]),
                "num_outlier_channels": int(channels.sum()),
                "share_outlier_channels_kept": _share(kept[:, channels]),
                "share_kept_in_outlier_channels": float(kept[:, channels].sum()) / max(1, int(kept.sum())),
                "share_in_band": band / max(1, rest.numel()),
                "threshold": _median(above),
                "threshold_without_outliers": _median(above_without),
            }
        )
    return rows


def _norms(anatomy: Anatomy, dense: Dense, norms: Mapping[Site, ColumnNorms]) -> Tensor:
    return norms[input_of(anatomy, dense)].result().norms


def _expert(anatomy: Anatomy, dense: Dense, part: str) -> int | None:
    """Number of the expert; a shared expert has one too, although it is a module of its own."""
    for site, bound in anatomy.matrices.items():
        if (site.layer, site.part) == (dense.layer, part) and bound.parameter is dense.parameter:
            return site.expert if dense.expert is None else dense.expert
    return dense.expert


def _share(kept: Tensor) -> float | None:
    return float(kept.double().mean()) if kept.numel() else None


def _median(thresholds: Tensor) -> float | None:
    """Over the groups; None where nothing is removed."""
    value = float(thresholds.double().flatten().quantile(0.5, interpolation="lower"))
    return value if value >= 0 else None


def _thresholds(
    scores: Tensor, mask: Tensor, channels: Tensor, sparsity: float, scope: str, block: int
) -> Thresholds:
    if scope == "row":
        return Thresholds(_largest_removed(scores, mask), _kth_of_rows(scores[:, ~channels], sparsity))
    if scope == "map":
        return _flat(scores, mask, channels, sparsity)
    pieces = []
    for start in range(0, scores.shape[1], block):
        here = slice(start, start + block)
        found = _flat(scores[:, here], mask[:, here], channels[here], sparsity)
        width = scores[:, here].shape[1]
        pieces.append(Thresholds(found.all.expand(1, width), found.without.expand(1, width)))
    return Thresholds(torch.cat([p.all for p in pieces], 1), torch.cat([p.without for p in pieces], 1))


def _flat(scores: Tensor, mask: Tensor, channels: Tensor, sparsity: float) -> Thresholds:
    flat = scores[:, ~channels].reshape(1, -1)
    return Thresholds(
        _largest_removed(scores.reshape(1, -1), mask.reshape(1, -1)), _kth_of_rows(flat, sparsity)
    )


def _largest_removed(scores: Tensor, mask: Tensor) -> Tensor:
    """Per row; -1, below every score, where nothing is removed."""
    return torch.where(mask, -1.0, scores).amax(1, keepdim=True)


def _kth_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Largest score that this sparsity removes from every row."""
    count = num_removed(sparsity, scores.shape[1])
    if not count:
        return scores.new_full((len(scores), 1), -1.0)
    return scores.kthvalue(count, dim=1, keepdim=True).values
