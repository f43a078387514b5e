"""What every statistic is: something that reads tensors, and whose partial results add up.

    update(tensor ...)   read more data
    merge(other)         take in what another accumulator of the same kind has read
    result()             the statistics of all that was read
    state()              everything, as named tensors that safetensors can store; `from_state` is its inverse

`merge` is associative and commutative: counts exactly, sums to 1e-9 relative in float64. So a batch, a shard, a machine and a
resumed run are the same thing. No accumulator keeps a whole activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from skerry.errors import MergeMismatch

HIGH_RATIOS = (3, 5, 10, 20, 50, 100)
"""A channel is high in a sample when its largest |x| there is at least so many times the median of that over channels."""
MASSIVE_RATIOS = (4, 8, 16, 64, 256)
"""A token is massive when its largest |x| is at least so many times the median of that over the sample's tokens."""
NEAR_ZERO = 0.1
"""A value is near zero when |x| is below this times the RMS of its token."""

Columns = dict[str, Any]
"""Columns of a table by name: arrays of one length, or plain numbers where the table has one row."""


class Accumulator(Protocol):
    """A mergeable statistic; see the module's docstring."""

    def merge(self, other: Any) -> None:
        """Take in what `other` has read."""

    def result(self) -> Any:
        """The statistics of all that was read."""

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Accumulator:
        """The accumulator that wrote `state`."""


def check_same(kind: str, ours: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    """Refuse to merge accumulators that do not measure the same thing.

    Raises:
        MergeMismatch: Naming the first setting that differs.
    """
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise MergeMismatch(
                f"two {kind} can be merged only with the same {name}; here they have {value} and {theirs.get(name)}"
            )


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as tensors of their own memory, so that a later update does not change what was packed."""
    return {name: torch.from_numpy(np.array(a, order="C")) for name, a in arrays.items()}


def unpack(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays under `prefix`, the prefix taken off."""
    return {n.removeprefix(prefix): t.numpy().copy() for n, t in state.items() if n.startswith(prefix)}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under names that begin with `prefix`."""
    return {prefix + name: tensor for name, tensor in state.items()}


def median_of_rows(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Median of every row; mean of the middle two where their number is even; NaN for a row without valid values."""
    if valid is None or valid.all():
        return np.median(values, axis=1) if values.shape[1] else np.full(len(values), np.nan)
    return np.array([np.median(v[ok]) if ok.any() else np.nan for v, ok in zip(values, valid, strict=True)])
