"""OWL: blocks with many outlying scores keep more of their weights.

Yin et al. 2310.05175, section 3. With Wanda's scores A of all maps of block l, and n blocks:

    D_l = share of scores in block l that are above M mean(A)          kept_l = c + 2 lambda (D_l - min D) / (max D - min D)

c is such that the kept weights of all blocks together are 1 - sparsity; the paper takes the mean over blocks, which is the same where
blocks are equally large. So blocks differ by at most 2 lambda. M = 5 and lambda = 0.08 are the paper's for LLaMA. A block that would keep more
than everything keeps everything, and c makes up for it. Limit: blocks of equal D, or lambda = 0, are pruned alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.dense import Dense
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.errors import UnknownOption
from skerry.impact.pruning_scores import wanda
from skerry.measure.gram import ColumnNorms, input_of

OUTLIER_FACTOR = 5.0
SPREAD = 0.08


def outlier_share(scores: Sequence[Float[Tensor, "_ _"]], factor: float = OUTLIER_FACTOR) -> float:
    """Share of the scores of one block that are above `factor` times their mean.

    Args:
        scores: Of all maps of the block.
        factor: The paper's M.
    """
    count = sum(s.numel() for s in scores)
    mean = sum(float(s.double().sum()) for s in scores) / count
    return sum(int((s > factor * mean).sum()) for s in scores) / count


def block_sparsities(
    shares: Mapping[int, float], sizes: Mapping[int, int], sparsity: float, *, spread: float = SPREAD
) -> dict[int, float]:
    """Sparsity of every block; their mean weighted by size is `sparsity`.

    Args:
        shares: D of every block.
        sizes: Number of weights of every block.
        sparsity: Of all blocks together.
        spread: The paper's lambda: blocks differ by at most twice this.

    Raises:
        UnknownOption: A spread that is no share.
    """
    if not 0 <= spread <= 1:
        raise UnknownOption(f"an OWL spread of {spread:g} is not between 0 and 1; the paper takes {SPREAD}")
    layers = list(shares)
    d = np.array([shares[layer] for layer in layers])
    weights = np.array([sizes[layer] for layer in layers], np.float64) / sum(sizes[layer] for layer in layers)
    width = d.max() - d.min()
    rise = 2 * spread * (d - d.min()) / width if width > 0 else np.zeros_like(d)
    # What is kept grows with c, so c is found by halving; clipped blocks make it no closed form.
    low, high = -1.0 - rise.max(), 1.0
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if weights @ np.clip(rise + c, 0, 1) < 1 - sparsity else (low, c)
    kept = np.clip(rise + (low + high) / 2, 0, 1)
    return {layer: float(1 - k) for layer, k in zip(layers, kept, strict=True)}


def owl_sparsities(
    anatomy: Anatomy,
    maps: Sequence[Dense],
    norms: Mapping[Site, ColumnNorms],
    sparsity: float,
    *,
    factor: float = OUTLIER_FACTOR,
    spread: float = SPREAD,
) -> dict[int, float]:
    """Sparsity of every block that has maps.

    Args:
        anatomy: The model.
        maps: The maps that are pruned.
        norms: Column norms of the untouched model by input.
        sparsity: Of all maps together.
        factor: The paper's M.
        spread: The paper's lambda.
    """
    shares: dict[int, float] = {}
    sizes: dict[int, int] = {}
    for layer in sorted({d.layer for d in maps if d.layer is not None}):
        members = [d for d in maps if d.layer == layer]
        scores = [wanda(d.weight, norms[input_of(anatomy, d)].result().norms) for d in members]
        shares[layer] = outlier_share(scores, factor)
        sizes[layer] = sum(d.weight.numel() for d in members)
    return block_sparsities(shares, sizes, sparsity, spread=spread)
