"""How attention learns where tokens are: `rope` rotates queries and keys, `none` tells nothing beyond the causal mask.

    rope: (q_a, q_b) -> (q_a cos - q_b sin, q_b cos + q_a sin) for the channel pairs (i, i + d/2), angle = position theta^(-2i/d)

Su et al. 2021, in the layout of LLaMA: halves, not neighbours.  Limit: position 0 is left as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from skerry.errors import UnknownOption, near_matches

_POSITIONS = ("rope", "none")


class Rotation(NamedTuple):
    """Of some positions, [position channel] each."""

    cos: Tensor
    sin: Tensor


class Rotary(nn.Module):
    """The tables of cosines and sines, made once and longer when asked for."""

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.width, self.theta = width, theta
        self._tables: dict[tuple[torch.device, torch.dtype], Rotation] = {}

    def forward(self, first: int, last: int, like: Tensor) -> Rotation:
        """For positions first to last - 1, in the dtype and on the device of `like`."""
        key = (like.device, like.dtype)
        table = self._tables.get(key)
        if table is None or len(table.cos) < last:
            table = self._tables[key] = self._make(max(last, 256), like)
        return Rotation(table.cos[first:last], table.sin[first:last])

    def _make(self, length: int, like: Tensor) -> Rotation:
        exponents = torch.arange(0, self.width, 2, dtype=torch.float64) / self.width
        angles = torch.outer(torch.arange(length, dtype=torch.float64), self.theta**-exponents)
        angles = torch.cat([angles, angles], dim=-1)
        # Made under inference mode, a table could not be used in a training step later.
        with torch.inference_mode(False):
            return Rotation(angles.cos().to(like), angles.sin().to(like))


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """[sample head position channel], rotated by position."""
    low, high = x.chunk(2, dim=-1)
    return x * by.cos + torch.cat([-high, low], dim=-1) * by.sin


def positions() -> tuple[str, ...]:
    """The names of all choices."""
    return _POSITIONS


def check_position(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        UnknownOption: There is no choice of that name.
    """
    if name not in _POSITIONS:
        near = near_matches(name, list(_POSITIONS))
        raise UnknownOption(
            f"there is no position {name!r}{f'; did you mean {near}?' if near else ''} known: {', '.join(_POSITIONS)}"
        )
