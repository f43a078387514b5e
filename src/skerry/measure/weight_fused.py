"""The fused path of WeightStats: one call into kernels/weight.c.

It reads along memory, so a transposed matrix is read as what it is a transpose of, and rows and columns change places in the answer.
"""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Float
from torch import Tensor

from skerry.measure.fused import (
    DTYPES,
    MAX_LIST,
    histogram_room,
    is_readable,
    pointer,
    scratch,
    structure,
    tables,
)
from skerry.measure.kernels import library
from skerry.measure.moments import Moments
from skerry.measure.sketch import NUM_BUCKETS
from skerry.measure.weight_reading import LineReading, MatrixReading

_Arguments = structure(
    "Weight",
    """*w stride num_lines length dtype num_threads top_k nonfinite_k every turn is_transposed %bar
    *line_count *line_sums *line_range *line_abs *place_count *place_sums *place_range *place_abs
    *counts *histogram *used *tables *value *value_row *value_column *num_values
    *nonfinite_kind *nonfinite_row *nonfinite_column *num_nonfinite *scratch""",
)


class _Series:
    """Where the kernel writes the statistics of lines, or of places: one block of memory."""

    def __init__(self, num: int) -> None:
        self.block = np.zeros((8, num))
        self.block[5], self.block[6] = np.inf, -np.inf

    def pointers(self, name: str) -> dict[str, int]:
        first, row = pointer(self.block), self.block.strides[0]
        return {
            f"{name}_{k}": first + i * row for k, i in (("count", 0), ("sums", 1), ("range", 5), ("abs", 7))
        }

    def reading(self) -> LineReading:
        block = self.block
        return LineReading(Moments(block[0].view(np.int64), block[1:5]), block[5], block[6], block[7])


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
    nums, histogram, threads = np.zeros(7, np.int64), histogram_room(), kernels.threads(w.numel())
    value, at, missing = np.empty(top_k), np.empty((2, top_k), np.int64), np.empty((3, nonfinite_k), np.int64)
    arguments = _Arguments(
        w=lines.data_ptr(),
        stride=lines.stride(0),
        num_lines=lines.shape[0],
        length=lines.shape[1],
        dtype=DTYPES[w.dtype],
        num_threads=threads,
        top_k=top_k,
        nonfinite_k=nonfinite_k,
        every=every,
        turn=first_row // 16,
        is_transposed=is_transposed,
        bar=bar,
        **along.pointers("line"),
        **across.pointers("place"),
        counts=pointer(nums) + 32,
        histogram=pointer(histogram),
        used=pointer(nums) + 16,
        tables=tables(threads * 4 * NUM_BUCKETS),
        value=pointer(value),
        value_row=pointer(at),
        value_column=pointer(at) + at.strides[0],
        num_values=pointer(nums),
        nonfinite_kind=pointer(missing),
        nonfinite_row=pointer(missing) + missing.strides[0],
        nonfinite_column=pointer(missing) + 2 * missing.strides[0],
        num_nonfinite=pointer(nums) + 8,
    )
    functions = kernels.functions
    functions.skerry_weight_scratch.restype = ctypes.c_int64
    arguments.scratch = scratch(functions.skerry_weight_scratch(ctypes.byref(arguments)))
    functions.skerry_weight_read(ctypes.byref(arguments))
    num, num_missing, first, end = nums[:4].tolist()
    value, at, missing = value[:num], at[:, :num], missing[:, :num_missing]
    if is_transposed:
        along, across = across, along
    return MatrixReading(
        rows=along.reading(),
        columns=across.reading(),
        counts=nums[4:],
        histogram=histogram[first:end],
        first=first,
        largest=(value, at[0], at[1]),
        nonfinite=(missing[0], missing[1], missing[2]),
    )
