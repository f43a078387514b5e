"""The fused path of WeightStats: one call into kernels/weight.c. It reads along memory, so a transposed matrix is read as what it is a
transpose of, and rows and columns change places in the answer."""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Float
from torch import Tensor

from skerry.measure.fused import DTYPES, MAX_LIST, is_readable, pointer, scratch, structure
from skerry.measure.kernels import library
from skerry.measure.moments import Moments
from skerry.measure.sketch import NUM_BUCKETS
from skerry.measure.weight_reading import LineReading, MatrixReading

_Arguments = structure(
    "Weight",
    """*w stride num_lines length dtype num_threads top_k nonfinite_k every turn %bar
    *line_count *line_sums *line_range *line_abs *place_count *place_sums *place_range *place_abs
    *counts *histogram *value *value_line *value_place *num_values
    *nonfinite_kind *nonfinite_line *nonfinite_place *num_nonfinite *scratch""",
)


class _Series:
    """Where the kernel writes the statistics of lines, or of places."""

    def __init__(self, num: int) -> None:
        self.moments = Moments.zeros(num)
        self.range = np.repeat([[np.inf], [-np.inf]], num, axis=1)
        self.abs_sum = np.zeros(num)

    def pointers(self, name: str) -> dict[str, int]:
        m = self.moments
        arrays = {"count": m.count, "sums": m.sums, "range": self.range, "abs": self.abs_sum}
        return {f"{name}_{key}": pointer(array) for key, array in arrays.items()}

    def reading(self) -> LineReading:
        return LineReading(self.moments, self.range[0], self.range[1], self.abs_sum)


def read_fused(
    w: Float[Tensor, "row column"], first_row: int, *, bar: float, top_k: int, nonfinite_k: int, every: int
) -> MatrixReading | None:
    """Read some rows; None when the kernels cannot or shall not do it. Arguments as those of `read_plain`."""
    is_transposed = w.stride(0) == 1 and w.stride(1) != 1
    lines = w.T if is_transposed else w
    if not is_readable(lines) or max(top_k, nonfinite_k) > MAX_LIST:
        return None
    kernels = library(w.numel())
    if kernels is None:
        return None
    along, across = _Series(lines.shape[0]), _Series(lines.shape[1])
    counts, histogram, nums = np.zeros(3, np.int64), np.zeros(NUM_BUCKETS, np.int64), np.zeros(2, np.int64)
    value, at, missing = np.empty(top_k), np.empty((2, top_k), np.int64), np.empty((3, nonfinite_k), np.int64)
    arguments = _Arguments(
        w=lines.data_ptr(),
        stride=lines.stride(0),
        num_lines=lines.shape[0],
        length=lines.shape[1],
        dtype=DTYPES[w.dtype],
        num_threads=kernels.threads(w.numel()),
        top_k=top_k,
        nonfinite_k=nonfinite_k,
        every=every,
        turn=first_row // 16,
        bar=bar,
        **along.pointers("line"),
        **across.pointers("place"),
        counts=pointer(counts),
        histogram=pointer(histogram),
        value=pointer(value),
        value_line=pointer(at[0]),
        value_place=pointer(at[1]),
        num_values=pointer(nums),
        nonfinite_kind=pointer(missing[0]),
        nonfinite_line=pointer(missing[1]),
        nonfinite_place=pointer(missing[2]),
        num_nonfinite=pointer(nums[1:]),
    )
    functions = kernels.functions
    functions.skerry_weight_scratch.restype = ctypes.c_int64
    arguments.scratch = scratch(functions.skerry_weight_scratch(ctypes.byref(arguments)))
    functions.skerry_weight_read(ctypes.byref(arguments))
    value, at, missing = value[: nums[0]], at[:, : nums[0]], missing[:, : nums[1]]
    if is_transposed:
        along, across, at, missing = across, along, at[::-1], missing[[0, 2, 1]]
    return MatrixReading(
        along.reading(), across.reading(), counts, histogram, (value, at[0], at[1]), (missing[0], missing[1], missing[2])
    )
