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
        keep: False where the position is padding, [sample position]; by default what the attention mask of the forward says.
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
        ids = args[0] if args else kwargs.get("input_ids")
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if not isinstance(given, Tensor) or given.dim() < 2:
            raise UnknownOption("resampling needs to see the ids of the inputs, [sample position]")
        shape = given.shape[:2]
        if shape[0] < 2:
            raise UnknownOption(
                "resampling exchanges values between inputs, so a batch needs at least two of them"
            )
        self.flat = donors(self._kept(shape, kwargs.get("attention_mask")), self.seed)

    def _kept(self, shape: torch.Size, mask: Any) -> Bool[Tensor, "sample position"]:
        if self.keep is not None:
            if self.keep.shape != shape:
                raise UnknownOption(
                    f"keep is of shape {list(self.keep.shape)}; the inputs are [sample position] = {list(shape)}"
                )
            return self.keep.detach().to("cpu", torch.bool)
        if isinstance(mask, Tensor) and mask.shape == shape:
            return mask.detach().to("cpu", torch.bool)
        return torch.ones(shape, dtype=torch.bool)

    def check(self, num_rows: int, site: object) -> None:
        """Refuse a place that does not hold one row per token, or a part of the model that runs on its own.

        Raises:
            UnknownOption: With both numbers.
        """
        if num_rows != len(self.flat):
            raise UnknownOption(
                f"{site} has {num_rows} rows and the inputs {len(self.flat)} tokens, so values cannot be exchanged by position"
            )


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
