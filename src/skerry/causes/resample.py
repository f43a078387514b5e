"""Who gives whom a value when activations are exchanged between the inputs of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from skerry.anatomy.model import Anatomy
from skerry.errors import UnknownOption


class Donors:
    """For each token of the running forward the flat number of the token that gives its value.

    Args:
        anatomy: The model, whose inputs say how many inputs and positions there are.
        seed: Chooses the other inputs.
        keep: False where the position is padding, [sample position].
    """

    def __init__(self, anatomy: Anatomy, seed: int, keep: Tensor | None) -> None:
        self.anatomy, self.seed, self.keep = anatomy, seed, keep
        self.flat: Int[Tensor, "token"] = torch.zeros(0, dtype=torch.int64)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, each forward chooses its donors before its first block."""
        handle = self.anatomy.trunk.register_forward_pre_hook(self._choose, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _choose(self, _m: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids: Any = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        num_samples, num_positions = ids.shape[:2]
        if num_samples < 2:
            raise UnknownOption(
                "resampling exchanges values between inputs, so a batch needs at least two of them"
            )
        keep = (
            torch.ones(num_samples, num_positions, dtype=torch.bool) if self.keep is None else self.keep.cpu()
        )
        self.flat = donors(keep, self.seed)


def donors(keep: Bool[Tensor, "sample position"], seed: int) -> Int[Tensor, "token"]:
    """Flat token that gives each token its value: the next input, in a random order, that has this position.

    A token without another input at its position, and padding, keep their own.
    """
    num_samples, num_positions = keep.shape
    generator = torch.Generator().manual_seed(seed)
    flat = torch.arange(num_samples * num_positions).reshape(num_samples, num_positions)
    result = flat.clone()
    order = torch.randperm(num_samples, generator=generator)
    for position in range(num_positions):
        present = order[keep[order, position]]
        result[present, position] = flat[present.roll(-1), position]
    return result.reshape(-1)
