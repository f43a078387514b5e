"""The fused path of WeightStats: one call into kernels/weight.c, which adds to the accumulator's arrays in place.

It reads along memory, so a transposed matrix is read as what it is a transpose of, and rows and columns change places.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

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
from skerry.measure.sketch import NUM_BUCKETS

_Arguments = structure(
    "Weight",
    """*w stride num_lines length dtype num_threads top_k nonfinite_k every turn is_transposed %bar
    line_stride place_stride
    *line_count *line_sums *line_range *line_abs *place_count *place_sums *place_range *place_abs
    *counts *histogram *used *tables *value *value_row *value_column *num_values
    *nonfinite_kind *nonfinite_row *nonfinite_column *num_nonfinite *scratch""",
)


class FusedReading(NamedTuple):
    """What is left to do in Python after the kernel has added the rest to the accumulator.

    Attributes:
        histogram: int64 [bucket], from bucket `first` on; overwritten by the next call.
        first: Number of its first bucket.
        largest: value, row, column.
        nonfinite: kind, row, column.
    """

    histogram: np.ndarray
    first: int
    largest: tuple[np.ndarray, np.ndarray, np.ndarray]
    nonfinite: tuple[np.ndarray, np.ndarray, np.ndarray]


def read_fused(
    stats: Any, w: Float[Tensor, "row column"], first_row: int, *, nonfinite_k: int, every: int
) -> FusedReading | None:
    """Read some rows into `stats`; None when the kernels cannot or shall not do it, and nothing was read.

    Args:
        stats: A WeightStats, whose arrays the kernel adds to.
        w: The rows.
        first_row: Number of the first of them.
        nonfinite_k: How many non-finite entries to locate.
        every: One tile in so many is sketched.
    """
    is_transposed = w.stride(0) == 1 and w.stride(1) != 1
    lines = w.T if is_transposed else w
    top_k = stats.largest.limit
    if not is_readable(lines) or max(top_k, nonfinite_k) > MAX_LIST:
        return None
    kernels = library(w.numel())
    if kernels is None:
        return None
    threads, histogram = kernels.threads(w.numel()), histogram_room()
    nums, value, found = (
        np.zeros(4, np.int64),
        np.empty(top_k),
        np.empty(2 * top_k + 3 * nonfinite_k, np.int64),
    )
    along, across = (stats.columns, stats.rows) if is_transposed else (stats.rows, stats.columns)
    first_num, first_found = pointer(nums), pointer(found)
    missing = first_found + 16 * top_k
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
        bar=stats.largest.bar(),
        **_pointers("line", along, 0 if is_transposed else first_row),
        **_pointers("place", across, first_row if is_transposed else 0),
        counts=pointer(stats.counts),
        histogram=pointer(histogram),
        used=first_num + 16,
        tables=tables(threads * 4 * NUM_BUCKETS),
        value=pointer(value),
        value_row=first_found,
        value_column=first_found + 8 * top_k,
        num_values=first_num,
        nonfinite_kind=missing,
        nonfinite_row=missing + 8 * nonfinite_k,
        nonfinite_column=missing + 16 * nonfinite_k,
        num_nonfinite=first_num + 8,
    )
    functions = kernels.functions
    functions.skerry_weight_scratch.restype = ctypes.c_int64
    arguments.scratch = scratch(functions.skerry_weight_scratch(ctypes.byref(arguments)))
    functions.skerry_weight_read(ctypes.byref(arguments))
    num, num_missing, first, end = nums.tolist()
    row, column = found[: 2 * top_k].reshape(2, top_k)[:, :num]
    kind, bad_row, bad_column = found[2 * top_k :].reshape(3, nonfinite_k)[:, :num_missing]
    return FusedReading(histogram[first:end], first, (value[:num], row, column), (kind, bad_row, bad_column))


def _pointers(name: str, lines: Any, first: int) -> dict[str, int]:
    """Addresses of the arrays of `Lines`, from line `first` on."""
    arrays = {
        "count": lines.moments.count,
        "sums": lines.moments.sums,
        "range": lines.range,
        "abs": lines.abs_sum,
    }
    addresses = {f"{name}_{key}": pointer(array) + 8 * first for key, array in arrays.items()}
    return {f"{name}_stride": len(lines.abs_sum), **addresses}
