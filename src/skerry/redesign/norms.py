"""Normalisation of the residual stream, one class per choice; `norms()` lists them.

    rmsnorm      x / sqrt(mean x^2 + eps) * g               one gain per channel               Zhang and Sennrich 2019
    layernorm    (x - mean) / sqrt(var + eps) * g + b                                          Ba et al. 2016
    single-rms   x / sqrt(mean x^2 + eps) * g               one gain for all channels          SSNorm of OSP (Park et al. 2025, arXiv 2506.19697)
    sandwich     rmsnorm, and another behind attention and behind the feed-forward             Ding et al. 2021 (CogView), Gemma 2
    dyt          g tanh(alpha x) + b                        no statistics of x                 Zhu et al. 2025 (arXiv 2503.10622)

A gain per channel lets one channel grow against the others; one gain for all does not. `dyt` bounds what is read, not what is added.
Limit: g = 1, b = 0 gives every norm but `dyt` an output of mean square one; dyt with a small alpha is alpha g x + b.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skerry.errors import UnknownOption
from skerry.redesign.choosing import check_choice


class RMSNorm(nn.Module):
    """One gain per channel; computed in at least float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, wide.shape[-1:], None, self.eps).to(x.dtype) * self.weight


class SingleRMSNorm(RMSNorm):
    """One gain for all channels."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(1, eps)


class LayerNorm(nn.LayerNorm):
    """Mean taken away, gain and bias per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)


class DyT(nn.Module):
    """Dynamic tanh: bounded, without statistics."""

    def __init__(self, width: int, eps: float, *, alpha: float = 0.5) -> None:
        super().__init__()
        if alpha <= 0:
            raise UnknownOption(f"norm 'dyt': alpha starts at {alpha}; it must be above 0")
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        return torch.tanh(self.alpha * x) * self.weight + self.bias


_NORMS: dict[str, type[nn.Module]] = {
    "rmsnorm": RMSNorm,
    "layernorm": LayerNorm,
    "single-rms": SingleRMSNorm,
    "sandwich": RMSNorm,
    "dyt": DyT,
}


def norms() -> tuple[str, ...]:
    """The names of all norms."""
    return tuple(_NORMS)


def has_norm_behind(name: str) -> bool:
    """Whether attention and feed-forward have a norm behind them too."""
    return name == "sandwich"


def check_norm(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown norm or option.

    Raises:
        UnknownOption: With the near matches.
    """
    check_choice("norm", name, _NORMS, options, fixed=("width", "eps"))


def make_norm(name: str, width: int, eps: float, **options: Any) -> nn.Module:
    """A norm over `width` channels.

    Raises:
        UnknownOption: There is no norm of that name, or it has no such option.
    """
    check_norm(name, options)
    return _NORMS[name](width, eps, **options)
