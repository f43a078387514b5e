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
    lengths = _lengths(num_samples)
    if not lengths:
        return np.zeros(0)
    if _close(float(exposure.sum()), float(sum(count * n**2 for n, count in lengths))):
        return _average(num_samples, [(n, count, np.full(n, 1 / n)) for n, count in lengths])
    window = _window(lengths, float(exposure[0]))
    pairs = sum(count * int(np.minimum(np.arange(1, n + 1), window).sum()) for n, count in lengths)
    if _close(float(exposure.sum()), float(pairs)):
        return _average(num_samples, [(n, count, _causal(n, window)) for n, count in lengths])
    return 1 / np.maximum(exposure / np.maximum(num_samples, 1), 1)


def _lengths(num_samples: np.ndarray) -> list[tuple[int, int]]:
    """Lengths of the inputs, and how many have each."""
    ends = num_samples - np.append(num_samples[1:], 0)
    at = np.flatnonzero(ends > 0)
    return [(int(k) + 1, int(ends[k])) for k in at]


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 0.01 * max(a, b, 1.0)


def _window(lengths: list[tuple[int, int]], first: float) -> int:
    """The window under which position 0 is seen by so many queries: sum over inputs of min(w, L)."""
    low, high = 1, max(n for n, _ in lengths)
    while low < high:
        middle = (low + high) // 2
        if sum(count * min(middle, n) for n, count in lengths) < first - 0.5:
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
