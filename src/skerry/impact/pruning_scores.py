"""What pruning goes by: a score per weight, and the mask that keeps the weights of largest score.

    magnitude   S_ij = |w_ij|
    Wanda       S_ij = |w_ij| ||x_j||_2     (Sun et al. 2306.11695, section 3), ||x_j|| over the calibration tokens

Scores are compared over one map, over one row (Wanda) or over many maps at once; or n of every m neighbours in a row are kept. A mask is
True where the weight is kept. The number removed is the share asked for, rounded to a whole weight, whatever the scores; among equal
scores the first go first. Limit: with inputs of equal norm Wanda is magnitude compared per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.errors import UnknownOption, near_matches

_BITS = 16  # of a score, sorted into bins at once


class Method(NamedTuple):
    """A way to prune.

    Attributes:
        score: magnitude, wanda, sparsegpt or random.
        scope: Which weights are compared with each other: model, map, row or columns (so many columns of all rows).
        by_block: Whether blocks get sparsities of their own (OWL).
    """

    score: str
    scope: str
    by_block: bool = False


METHODS = {
    "magnitude": Method("magnitude", "map"),
    "magnitude-global": Method("magnitude", "model"),
    "wanda": Method("wanda", "row"),
    "owl": Method("wanda", "row", by_block=True),
    "sparsegpt": Method("sparsegpt", "columns"),
    "owl-sparsegpt": Method("sparsegpt", "columns", by_block=True),
    "random": Method("random", "row"),
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownOption: With the near matches.
    """
    if name not in METHODS:
        near = near_matches(name, list(METHODS))
        raise UnknownOption(
            f"there is no pruning method {name!r}{f'; did you mean {near}?' if near else ''}; the methods are {', '.join(METHODS)}"
        )
    return METHODS[name]


def magnitude(weight: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """|w|, in float32 or wider."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).abs()


def wanda(weight: Float[Tensor, "row column"], norms: Float[Tensor, "column"]) -> Float[Tensor, "row column"]:
    """|w_ij| ||x_j||. Where no input was seen (an expert that no token was routed to) all norms count as equal.

    Args:
        weight: The weight.
        norms: ||x_j||_2 over the calibration tokens.
    """
    size = magnitude(weight)
    return size * (norms if bool(norms.any()) else torch.ones_like(norms)).to(size)


def kth_smallest(scores: Callable[[], Iterable[Float[Tensor, "..."]]], count: int) -> float:
    """The `count`-th smallest of all scores together, exactly, without holding them at once.

    Floats that are not negative order like the integers of their bits: a histogram of the leading 16 bits names the bin that holds the
    answer, one of the next 16 bits inside that bin the one in it, and so on.

    Args:
        scores: Gives the tensors anew each time that it is called, all of one dtype; none is negative.
        count: From 1 on.
    """
    first = next(iter(scores()))
    width, integers = (64, torch.int64) if first.dtype == torch.float64 else (32, torch.int32)
    prefix, left = 0, count
    for shift in range(width - _BITS, -1, -_BITS):
        bins = torch.zeros(1 << _BITS, dtype=torch.int64)
        for piece in scores():
            bits = piece.reshape(-1).contiguous().view(integers).long()
            inside = bits[bits >> (shift + _BITS) == prefix] if shift + _BITS < width else bits
            bins += torch.bincount((inside >> shift) & ((1 << _BITS) - 1), minlength=1 << _BITS).cpu()
        below = bins.cumsum(0)
        chosen = int(torch.searchsorted(below, left))
        left -= int(below[chosen - 1]) if chosen else 0
        prefix = (prefix << _BITS) | chosen
    return float(torch.tensor(prefix, dtype=integers).view(first.dtype))


def num_removed(sparsity: float, num_weights: int) -> int:
    """How many weights a share is, to the nearest whole one."""
    return round(sparsity * num_weights)


def keep_above(
    scores: Float[Tensor, "row column"], threshold: float, num_ties: int
) -> Bool[Tensor, "row column"]:
    """Keeps what is above the threshold, and of what equals it all but the first `num_ties`."""
    keep = scores > threshold
    ties = (scores == threshold).nonzero()[num_ties:]
    keep[ties[:, 0], ties[:, 1]] = True
    return keep


def keep_of_map(scores: Float[Tensor, "row column"], sparsity: float) -> Bool[Tensor, "row column"]:
    """Keeps the largest scores of the whole map."""
    count = num_removed(sparsity, scores.numel())
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = kth_smallest(lambda: [scores], count)
    return keep_above(scores, threshold, count - int((scores < threshold).sum()))


def keep_of_rows(scores: Float[Tensor, "row column"], sparsity: float) -> Bool[Tensor, "row column"]:
    """Keeps the largest scores of every row.

    Rows lose equally many weights, or differ by one where the share is no whole number of columns, so that the map as a whole loses
    what was asked for.
    """
    num_rows = len(scores)
    share = num_removed(sparsity, scores.numel()) / num_rows
    upto = torch.arange(num_rows + 1, dtype=torch.float64).mul(share).add(1e-9).floor().long()
    order = scores.argsort(dim=1, stable=True)
    ranks = torch.arange(scores.shape[1], device=order.device).expand_as(order)
    kept = ranks >= upto.diff().to(order.device)[:, None]
    return torch.empty_like(kept, memory_format=torch.contiguous_format).scatter_(1, order, kept)


def keep_of_groups(scores: Float[Tensor, "row column"], kept: int, of: int) -> Bool[Tensor, "row column"]:
    """Keeps the `kept` largest of every `of` neighbours in a row."""
    order = scores.unflatten(1, (-1, of)).argsort(dim=2, stable=True)
    high = (torch.arange(of, device=order.device) >= of - kept).expand_as(order)
    return torch.empty_like(high, memory_format=torch.contiguous_format).scatter_(2, order, high).flatten(1)


def parse_structure(structure: str) -> tuple[int, int]:
    """`2:4` as (2, 4): of every 4 neighbours in a row at most 2 are kept.

    Raises:
        UnknownOption: Not of that form.
    """
    kept, colon, of = structure.partition(":")
    if not (colon and kept.isdigit() and of.isdigit() and 0 < int(kept) < int(of)):
        raise UnknownOption(
            f"structure {structure!r} is not n:m with 0 < n < m; 2:4 keeps two of every four neighbours"
        )
    return int(kept), int(of)
