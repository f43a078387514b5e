"""Feed-forward layers, one class per choice; `feed_forwards()` lists them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from skerry.errors import UnknownOption, near_matches


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x) (Shazeer 2020): the product of two large numbers that massive activations are born from."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


_FEED_FORWARDS: dict[str, type[nn.Module]] = {"swiglu": SwiGLU}


def feed_forwards() -> tuple[str, ...]:
    """The names of all feed-forward layers."""
    return tuple(_FEED_FORWARDS)


def make_feed_forward(name: str, width: int, inner: int) -> nn.Module:
    """A feed-forward layer.

    Raises:
        UnknownOption: There is none of that name.
    """
    if name not in _FEED_FORWARDS:
        near = near_matches(name, list(_FEED_FORWARDS))
        raise UnknownOption(
            f"there is no feed-forward {name!r}{f'; did you mean {near}?' if near else ''} known: {', '.join(_FEED_FORWARDS)}"
        )
    return _FEED_FORWARDS[name](width, inner)
