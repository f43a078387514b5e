"""Products with half the digits where the processor multiplies them several times as fast, for passes that only look at ranges.

    y = bf16(x) bf16(W)^T,  summed in float32

Every product is then right to 2^-8, its sum to that share of the terms' size over the square root of their number. The range of a channel,
of which a scale takes a power below 1, is known from a sample of the text anyway, and to no more than a percent.

Only on processors with instructions for it (AMX, AVX512-BF16) where torch takes notice of the setting; else nothing changes. Limit: values
that bf16 holds exactly give exact products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from skerry.anatomy.model import Anatomy


def can_be_coarse(anatomy: Anatomy) -> bool:
    """Whether coarse products are faster here: float32 on a processor with instructions for bf16."""
    first = next(anatomy.model.parameters())
    if first.dtype != torch.float32 or first.device.type != "cpu":
        return False
    if not hasattr(_products(), "fp32_precision"):
        return False
    asked = (getattr(torch.cpu, n, None) for n in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(ask is not None and ask() for ask in asked) and _has_effect()


@cache
def _has_effect() -> bool:
    """Whether the setting reaches the products: on some processors with the instructions the library takes no notice of it."""
    x = torch.linspace(-1.0, 1.0, 4096).view(64, 64)
    place = _products()
    before, plain = place.fp32_precision, torch.nn.functional.linear(x, x)
    place.fp32_precision = "bf16"
    try:
        return not torch.nn.functional.linear(x, x).equal(plain)
    finally:
        place.fp32_precision = before


@contextmanager
def coarse(anatomy: Anatomy) -> Iterator[bool]:
    """Coarse products while open, where they are faster; gives whether they are."""
    if not can_be_coarse(anatomy):
        yield False
        return
    place = _products()
    before = place.fp32_precision
    place.fp32_precision = "bf16"
    try:
        yield True
    finally:
        place.fp32_precision = before


def _products() -> Any:
    """Where torch keeps how products are computed on a CPU; None in older versions."""
    return getattr(torch.backends.mkldnn, "matmul", None)
