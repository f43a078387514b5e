"""How attention learns where tokens are: `rope` rotates queries and keys, `learned` adds a vector per position, `none` tells nothing
beyond the causal mask.

    rope: (q_a, q_b) -> (q_a cos - q_b sin, q_b cos + q_a sin) for the channel pairs (i, i + d/2), angle = position theta^(-2i/d)

Su et al. 2021, in the layout of LLaMA: halves, not neighbours.  Limit: position 0 is left as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from skerry.errors import BadTokens
from skerry.redesign.choosing import check_choice

_POSITIONS = ("rope", "learned", "none")


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
        UnknownOption: With the near matches.
    """
    check_choice("position", name, _POSITIONS)


class Learned(nn.Embedding):
    """A vector per position, added to the embedding of the token (GPT-2); padding in front of a sequence is not counted."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__(length, width)

    def forward(self, first: int, last: int, keep: Tensor | None) -> Tensor:  # type: ignore[override]
        """For positions first to last - 1, [1 or sample, position, channel].

        Args:
            first: Of the positions.
            last: Behind the positions.
            keep: [sample position] from 0 to last - 1, 0 at padding; None without.

        Raises:
            BadTokens: There are more positions than vectors.
        """
        if last > self.num_embeddings:
            raise BadTokens(
                f"a sequence of {last} tokens; learned positions end at {self.num_embeddings} (max_position_embeddings)"
            )
        at = torch.arange(first, last, device=self.weight.device)[None]
        if keep is not None and keep.dim() == 2:
            at = (keep[:, :last].long().cumsum(-1) - 1).clamp(min=0)[:, first:]
        return super().forward(at)
