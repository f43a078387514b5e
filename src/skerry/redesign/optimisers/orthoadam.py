"""OrthoAdam (Kaul et al. 2024, arXiv 2410.17174): Adam's moments are taken after a random orthogonal change of basis of the gradient.

g' = Q g;  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;  w = w - lr (Q^T (m^ / (sqrt(v^) + eps)) + weight_decay w).

Adam divides entry by entry, which makes the axes of the hidden state special; in a random basis no channel is. Every parameter has a Q of its own:
one Q for all would only make another basis special. An orthogonal matrix over all entries of a weight [row column] would be too large, so Q is
the product of one for the rows and one for the columns: g' = Q_rows g Q_columns^T. Of tables [token channel] the channels alone are turned.
Axes longer than `largest_block` are turned block by block. That the axes are turned apart and in blocks is our choice.

Q is drawn (Haar: QR of a normal matrix, signs of R's diagonal made positive) from the seed and the parameter's number, so a checkpoint holds the
seed and not Q. Limit: with Q = 1 this is AdamW. Defaults: lr 3e-3, weight decay 0.1, betas (0.9, 0.95), eps 1e-8, blocks up to 1024, seed 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from skerry.errors import UnknownOption, near_matches
from skerry.redesign.optimisers.kind import Group, Optimiser

ROTATIONS = ("random", "identity")


class Rotation(NamedTuple):
    """Orthogonal blocks of the two axes of a parameter; an axis without blocks stays as it is."""

    rows: list[Tensor]
    columns: list[Tensor]

    def forward(self, matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
        """Q_rows matrix Q_columns^T."""
        return _turn(_turn(matrix, self.rows).T, self.columns).T

    def back(self, matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
        """Q_rows^T matrix Q_columns."""
        return _turn(_turn(matrix, [q.T for q in self.rows]).T, [q.T for q in self.columns]).T


def _turn(matrix: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    if not blocks:
        return matrix
    parts = matrix.split([len(q) for q in blocks])
    return torch.cat([q @ part for q, part in zip(blocks, parts, strict=True)])


def random_orthogonal(size: int, *seed: int) -> Float[Tensor, "size size"]:
    """A Haar-distributed orthogonal matrix in float64, the same for the same seed words."""
    mixed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(mixed >> 1)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


class OrthoAdam(Optimizer):
    """Adam in a random basis.

    Args:
        groups: With `role`, `lr` and `weight_decay` each.
        betas: Decay of the two moments.
        eps: Added to sqrt(v^).
        rotation: `random`, or `identity` for plain AdamW.
        largest_block: Longer axes are turned in blocks of at most this size.
        seed: Of the bases.
    """

    def __init__(
        self,
        groups: list[Group],
        *,
        betas: tuple[float, float],
        eps: float,
        rotation: str,
        largest_block: int,
        seed: int,
    ) -> None:
        defaults = {
            "betas": betas,
            "eps": eps,
            "rotation": rotation,
            "largest_block": largest_block,
            "seed": seed,
        }
        self._rotations: dict[int, Rotation] = {}
        super().__init__(groups, defaults)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore moments and the seed; the bases follow from it."""
        super().load_state_dict(state_dict)
        self._rotations.clear()

    def _rotation(self, number: int, shape: torch.Size, like: Tensor, group: Group) -> Rotation:
        if number not in self._rotations:
            turns_rows = group["role"] not in ("embeddings", "head")
            axes = []
            for axis, size in enumerate(shape):
                turned = size > 1 and group["rotation"] == "random" and (axis == 1 or turns_rows)
                count = -(-size // group["largest_block"]) if turned else 0
                sizes = [len(part) for part in torch.arange(size).tensor_split(count)] if count else []
                seeds = [(group["seed"], number, axis, block) for block in range(count)]
                axes.append([random_orthogonal(n, *s).to(like) for n, s in zip(sizes, seeds, strict=True)])
            self._rotations[number] = Rotation(*axes)
        return self._rotations[number]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step.

        Args:
            closure: Computes the loss and its gradients; optional.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = -1
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._step_one(parameter, number, group)
        return loss

    def _step_one(self, parameter: Tensor, number: int, group: Group) -> None:
        gradient = parameter.grad
        assert gradient is not None
        # One vector is one row of a matrix; more than two axes are the rows of the last.
        matrix = gradient.reshape(-1, gradient.shape[-1]) if gradient.ndim > 1 else gradient.reshape(1, -1)
        rotation = self._rotation(number, matrix.shape, matrix, group)
        turned = rotation.forward(matrix)
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(turned, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(turned, memory_format=torch.contiguous_format)
        state["step"] += 1
        b1, b2 = group["betas"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(turned, 1 - b1)
        v.mul_(b2).addcmul_(turned, turned, value=1 - b2)
        root = (v.sqrt() / math.sqrt(1 - b2 ** state["step"])).add_(group["eps"])
        step = rotation.back(m / root).reshape(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(step, alpha=group["lr"] / (1 - b1 ** state["step"]))


def orthoadam(
    groups: list[Group],
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    rotation: str = "random",
    largest_block: int = 1024,
    seed: int = 0,
) -> Optimizer:
    """OrthoAdam over groups of parameters.

    Args:
        groups: With `role`, `lr` and `weight_decay` each.
        betas: Decay of the two moments.
        eps: Added to sqrt(v^).
        rotation: `random`, or `identity` for plain AdamW.
        largest_block: Longer axes are turned in blocks of at most this size.
        seed: Of the bases.

    Raises:
        UnknownOption: A rotation that does not exist, a block without a channel, or a negative seed.
    """
    if rotation not in ROTATIONS:
        near = near_matches(rotation, ROTATIONS)
        raise UnknownOption(
            f"orthoadam has no rotation {rotation!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(ROTATIONS)}"
        )
    if largest_block < 1 or seed < 0:
        wrong = f"largest_block is {largest_block}" if largest_block < 1 else f"the seed is {seed}"
        raise UnknownOption(f"{wrong}; a block has at least one channel, and seeds begin at 0")
    return OrthoAdam(groups, betas=betas, eps=eps, rotation=rotation, largest_block=largest_block, seed=seed)


OPTIMISER = Optimiser(
    "orthoadam",
    "Adam's moments in a random orthogonal basis of the gradient",
    "Kaul et al. 2024 (arXiv 2410.17174)",
    3e-3,
    0.1,
    orthoadam,
)
