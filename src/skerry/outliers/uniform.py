"""What attention would give to every position if all visible keys got the same: the null of an attention sink, matched by position.

    alpha0_k = (1 / e_k) sum over queries i that see k of 1 / n_i        e_k queries see key k, query i sees n_i keys

Which queries see what is read from the exposures. With lengths L (from how many inputs have each position) and a window w:
causal n_i = min(i + 1, w) and i in k .. k + w - 1; otherwise every key sees all, n_i = L. A window w is taken when it explains the
exposure of position 0, and causality when it explains all exposures within 1 %; anything else gets the mean of 1 / e_k.
Limit: causal without a window gives alpha0_0 = H_T / T, H_T the harmonic number; bidirectional gives 1 / T everywhere.
"""

from __future__ import annotations

import numpy as np


def uniform_alpha(num_samples: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """float64 [position], mean over inputs of the share that uniform attention gives to each position.

    Args:
        num_samples: [position], inputs that have the position; positions from 0 without a gap.
        exposure: [position], queries that could see it, summed over inputs.
    """
    lengths, count = _lengths(num_samples)
    if not len(lengths):
        return np.zeros(0)
    per_input = exposure / np.maximum(num_samples, 1)
    if _close(exposure.sum(), float((count * lengths.astype(float) ** 2).sum())):
        return _average(num_samples, [(n, c, np.full(n, 1 / n)) for n, c in zip(lengths, count, strict=True)])
    window = _window(lengths, count, float(exposure[0]))
    pairs = sum(
        c * np.minimum(np.arange(1, n + 1), window).sum() for n, c in zip(lengths, count, strict=True)
    )
    if _close(exposure.sum(), float(pairs)):
        return _average(
            num_samples, [(n, c, _causal(int(n), window)) for n, c in zip(lengths, count, strict=True)]
        )
    return 1 / np.maximum(per_input, 1)


def _lengths(num_samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the inputs and how many have each."""
    ends = num_samples - np.append(num_samples[1:], 0)
    at = np.flatnonzero(ends > 0)
    return at + 1, ends[at]


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 0.01 * max(a, b, 1.0)


def _window(lengths: np.ndarray, count: np.ndarray, first: float) -> int:
    """The window under which position 0 is seen by so many queries: sum over inputs of min(w, L)."""
    low, high = 1, int(lengths.max())
    while low < high:
        middle = (low + high) // 2
        if (count * np.minimum(middle, lengths)).sum() < first - 0.5:
            low = middle + 1
        else:
            high = middle
    return low


def _causal(length: int, window: int) -> np.ndarray:
    """alpha0 of one input."""
    seen = 1 / np.minimum(np.arange(1, length + 1), window)
    total = np.append(0.0, np.cumsum(seen))
    k = np.arange(length)
    end = np.minimum(k + window, length)
    return (total[end] - total[k]) / (end - k)


def _average(num_samples: np.ndarray, parts: list[tuple[int, int, np.ndarray]]) -> np.ndarray:
    out = np.zeros(len(num_samples))
    for length, count, alpha in parts:
        out[:length] += count * alpha
    return out / np.maximum(num_samples, 1)
