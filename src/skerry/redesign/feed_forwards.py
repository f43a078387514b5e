"""Feed-forward layers, one class per choice; `feed_forwards()` lists them.

    swiglu           W_down (silu(W_gate x) * W_up x)       Shazeer 2020: the product of two large numbers that massive activations are born from
    smooth-swiglu    the same; in training the product is rounded to 8 bits with a scale per channel
    gelu             W_down gelu(W_up x)                    Hendrycks and Gimpel 2016; GPT-2's, without its biases
    relu2            W_down relu(W_up x)^2                  So et al. 2021 (Primer)

smooth-swiglu is Fishman et al. 2024's (arXiv 2409.12517): h' = Q(s h) / s with s_i = 448 / max_t |h_ti| over the tokens of the batch and Q the
rounding to float8 e4m3, whose gradient is passed straight through; the function stays SwiGLU's, and outside training it is SwiGLU, since
s goes into W_up and W_down. The rounding is simulated: weights and x keep their numbers, there is no 8-bit product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skerry.redesign.choosing import check_choice

# Largest number of float8 e4m3.
_LARGEST = 448.0


class SwiGLU(nn.Module):
    """Gated; three matrices."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SmoothSwiGLU(SwiGLU):
    """SwiGLU, its product rounded channel by channel while it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        h = F.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(h + (_rounded(h) - h).detach() if self.training else h)


@torch.no_grad()
def _rounded(h: Tensor) -> Tensor:
    wide = h.float()
    scale = _LARGEST / wide.abs().flatten(0, -2).amax(0).clamp(min=1e-20)
    # Rounding of the scale itself can reach past the largest number, which is NaN there.
    eighth = (wide * scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return (eighth.float() / scale).to(h.dtype)


class GELU(nn.Module):
    """Plain; two matrices."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class ReLU2(GELU):
    """Plain, with the square of the positive part."""

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        return self.down_proj(F.relu(self.up_proj(x)).square())


_FEED_FORWARDS: dict[str, type[nn.Module]] = {
    "swiglu": SwiGLU,
    "smooth-swiglu": SmoothSwiGLU,
    "gelu": GELU,
    "relu2": ReLU2,
}


def feed_forwards() -> tuple[str, ...]:
    """The names of all feed-forward layers."""
    return tuple(_FEED_FORWARDS)


def check_feed_forward(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        UnknownOption: With the near matches.
    """
    check_choice("feed-forward", name, _FEED_FORWARDS)


def make_feed_forward(name: str, width: int, inner: int) -> nn.Module:
    """A feed-forward layer.

    Raises:
        UnknownOption: There is none of that name.
    """
    check_feed_forward(name)
    return _FEED_FORWARDS[name](width, inner)
