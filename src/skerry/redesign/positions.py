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


class Places(NamedTuple):
    """Where the tokens of a forward stand in their sequences.

    Attributes:
        first: Of the tokens, padding counted.
        last: Behind the tokens, padding counted.
        numbers: Places [sample position] from first to last - 1 without padding in front; None where there is no padding.
    """

    first: int
    last: int
    numbers: Tensor | None = None

    @classmethod
    def of(cls, first: int, last: int, attention_mask: Tensor | None) -> Places:
        """From a mask [sample position] that is 0 at padding: padding is not counted, as it is not seen.

        A rotated key meets another as their distance says, but a learned key that has no place meets a query as the query's place says.
        """
        if attention_mask is None or attention_mask.dim() != 2 or bool(attention_mask.bool().all()):
            return cls(first, last)
        counted = attention_mask[:, :last].bool().cumsum(-1) - 1
        return cls(first, last, counted.clamp(min=0)[:, first:])


class Rotation(NamedTuple):
    """Of some positions, [position channel] or [sample 1 position channel] each."""

    cos: Tensor
    sin: Tensor


class Rotary(nn.Module):
    """The tables of cosines and sines, made once and longer when asked for."""

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.width, self.theta = width, theta
        self._tables: dict[tuple[torch.device, torch.dtype], Rotation] = {}

    def forward(self, at: Places, like: Tensor, *, ahead: int = 0) -> Rotation:
        """Of some places moved by `ahead`, in the dtype and on the device of `like`."""
        key = (like.device, like.dtype)
        last = at.last + ahead
        table = self._tables.get(key)
        if table is None or len(table.cos) < last:
            table = self._tables[key] = self._make(max(last, 256), like)
        if at.numbers is None:
            return Rotation(table.cos[at.first + ahead : last], table.sin[at.first + ahead : last])
        numbers = at.numbers + ahead
        return Rotation(table.cos[numbers][:, None], table.sin[numbers][:, None])

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
    """A vector per position, added to the embedding of the token (GPT-2)."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__(length, width)

    def forward(self, at: Places) -> Tensor:  # type: ignore[override]
        """[1 or sample, position, channel].

        Raises:
            BadTokens: There are more positions than vectors.
        """
        if at.last > self.num_embeddings:
            raise BadTokens(
                f"a sequence of {at.last} tokens; learned positions end at {self.num_embeddings} (max_position_embeddings)"
            )
        numbers = at.numbers
        if numbers is None:
            numbers = torch.arange(at.first, at.last, device=self.weight.device)[None]
        return super().forward(numbers)
