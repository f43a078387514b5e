"""Normalisation of the residual stream, one class per choice; `norms()` lists them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skerry.errors import UnknownOption, near_matches


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * g, one gain per channel (Zhang and Sennrich 2019); computed in at least float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[.. channel] to [.. channel]."""
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, wide.shape[-1:], None, self.eps).to(x.dtype) * self.weight


_NORMS: dict[str, type[nn.Module]] = {"rmsnorm": RMSNorm}


def norms() -> tuple[str, ...]:
    """The names of all norms."""
    return tuple(_NORMS)


def make_norm(name: str, width: int, eps: float, **options: object) -> nn.Module:
    """A norm over `width` channels.

    Raises:
        UnknownOption: There is no norm of that name.
    """
    if name not in _NORMS:
        near = near_matches(name, list(_NORMS))
        raise UnknownOption(
            f"there is no norm {name!r}{f'; did you mean {near}?' if near else ''} known: {', '.join(_NORMS)}"
        )
    return _NORMS[name](width, eps, **options)
