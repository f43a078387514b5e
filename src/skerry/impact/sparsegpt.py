"""SparseGPT: weights are removed column by column, and those to the right make up for what that does to the output.

Frantar & Alistarh 2301.00774, sections 3.2 to 3.4. With H = X X^T + damping mean(diag H) I and the upper factor H^-1 = U^T U, for j from left
to right:

    score_ij = (w_ij / U_jj)^2                            the OBS error of removing w_ij, columns before j being fixed
    e_ij = w_ij / U_jj where removed, else 0              w_i,j: -= e_ij U_j,j:

Masks are chosen per 128 columns over all rows, when the first of them is reached (per m columns and row for n:m). U_j,: is the first row
of the inverse of H over the columns from j on, scaled; so each step is the optimal brain surgeon's, and after it the columns that are
left are the least-squares answer to what is fixed:

    w_R = w0_R + H_RR^-1 H_RF (w0_F - w_F),    F the columns done, R the rest; w0 the weight before.

Limit: inputs that are orthogonal need no compensation, and the score is Wanda's, squared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.errors import UnknownOption
from skerry.impact.pruning_scores import keep_of_groups, keep_of_map, num_removed, parse_structure

BLOCK = 128
DAMPING = 0.01


class Sparse(NamedTuple):
    """A pruned weight.

    Attributes:
        weight: What is left, made up for; zero where removed.
        mask: True where kept.
        scores: (w / U_jj)^2 at the moment of the choice.
    """

    weight: Float[Tensor, "row column"]
    mask: Bool[Tensor, "row column"]
    scores: Float[Tensor, "row column"]


class Factor(NamedTuple):
    """The inverse of a damped Gram matrix.

    Attributes:
        upper: U, H^-1 = U^T U, float64.
        dead: Columns whose input was always zero; they stand alone in H.
    """

    upper: Float[Tensor, "column column"]
    dead: Bool[Tensor, "column"]


def inverse_factor(gram: Float[Tensor, "column column"], damping: float) -> Factor:
    """Factor of the inverse of H = G / g + damping I, g the mean of G's diagonal over inputs that are not always zero.

    Args:
        gram: G = sum x x^T.
        damping: Share of the mean diagonal that is added to it.

    Raises:
        UnknownOption: Without damping, inputs that do not span their space.
    """
    h = gram.double().clone()
    diagonal = h.diagonal()
    dead = diagonal <= 0
    if bool((~dead).any()):
        h /= diagonal[~dead].mean()
    h[dead], h[:, dead] = 0.0, 0.0
    diagonal[dead] = 1.0
    diagonal += damping
    # H reversed is L L^T, so H is V V^T with V = L reversed, upper: U = V^-1, and no inverse of H is formed.
    lower, failed = torch.linalg.cholesky_ex(h.flip(0, 1))
    if int(failed):
        raise UnknownOption(
            f"damping {damping:g} leaves the Gram matrix singular: the calibration inputs do not span all {len(h)} channels. "
            f"Use damping {DAMPING:g}, or more calibration tokens"
        )
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    return Factor(torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), dead)


def sparsegpt(
    weight: Float[Tensor, "row column"],
    gram: Float[Tensor, "column column"],
    sparsity: float,
    *,
    structure: str | None = None,
    block: int = BLOCK,
    damping: float = DAMPING,
) -> Sparse:
    """Prune one map.

    Args:
        weight: The weight [out in]; not changed.
        gram: sum x x^T of what it reads.
        sparsity: Share removed; what `structure` says wins.
        structure: n:m, e.g. `2:4`; None for any pattern.
        block: Columns whose mask is chosen together.
        damping: Share of the mean diagonal added to it.

    Raises:
        UnknownOption: A singular Gram without damping; an unknown structure, or a width that it does not divide.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    groups = None if structure is None else fitting(structure, weight.shape[1])
    factor = inverse_factor(gram.to(weight.device), damping)
    u, w = factor.upper.to(wide), weight.to(wide).clone()
    scores, mask = torch.empty_like(w), torch.ones_like(w, dtype=torch.bool)
    size = block if groups is None else -(-block // groups[1]) * groups[1]
    everything_dead = bool(factor.dead.all())

    def choose(start: int, stop: int) -> None:
        found = (w[:, start:stop] / u.diagonal()[start:stop]).square()
        if not everything_dead:
            found[:, factor.dead[start:stop]] = 0.0
        scores[:, start:stop] = found
        if groups is not None:
            mask[:, start:stop] = keep_of_groups(found, *groups)
            return
        # The counts of the blocks add up to that of the map.
        removed = num_removed(sparsity, len(w) * stop) - num_removed(sparsity, len(w) * start)
        mask[:, start:stop] = keep_of_map(found, removed / found.numel())

    for start in range(0, w.shape[1], size):
        stop = min(start + size, w.shape[1])
        errors = torch.empty_like(w[:, start:stop])
        if groups is None:
            choose(start, stop)
        for j in range(start, stop):
            if groups is not None and j % groups[1] == 0:
                choose(j, j + groups[1])
            error = torch.where(mask[:, j], 0.0, w[:, j]) / u[j, j]
            w[:, j:stop] -= error[:, None] * u[j, j:stop]
            errors[:, j - start] = error
        w[:, stop:] -= errors @ u[start:stop, stop:]
    return Sparse(torch.where(mask, w, 0.0).to(weight.dtype), mask, scores)


def fitting(structure: str, num_columns: int) -> tuple[int, int]:
    """The n and m of a structure that divides the width.

    Raises:
        UnknownOption: It does not, or is none.
    """
    kept, of = parse_structure(structure)
    if num_columns % of:
        raise UnknownOption(
            f"structure {structure} needs a width that {of} divides, and a map reads {num_columns} channels; leave that map out with maps="
        )
    return kept, of
