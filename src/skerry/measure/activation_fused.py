"""The fused path of ActivationStats: one call into kernels/activation.c per update, which adds to the accumulator's arrays in place."""

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
from skerry.measure.places import Places
from skerry.measure.sketch import NUM_BUCKETS

_Arguments = structure(
    "Activation",
    """*x row_stride num_channels num_places num_samples *row *start *sample *position
    dtype num_threads top_k nonfinite_k num_top want_median every %bar
    *count *sums *range *value_counts *per_sample *abs_max_sum *totals *counts
    *histogram *used *tables *abs_max *square *value *value_place *value_channel *num_values
    *nonfinite_kind *nonfinite_place *nonfinite_channel *num_nonfinite *scratch""",
)


class FusedReading(NamedTuple):
    """What is left to do in Python after the kernel has added the rest to the accumulator.

    Attributes:
        abs_max: float32 [place], largest |x| of each token.
        square: float64 [place], sum of squares of each token.
        histogram: int64 [bucket], from bucket `first` on; overwritten by the next call.
        first: Number of its first bucket.
        largest: value, place, channel.
        nonfinite: kind, place, channel.
    """

    abs_max: np.ndarray
    square: np.ndarray
    histogram: np.ndarray
    first: int
    largest: tuple[np.ndarray, np.ndarray, np.ndarray]
    nonfinite: tuple[np.ndarray, np.ndarray, np.ndarray]


def read_fused(stats: Any, x: Float[Tensor, "row channel"], at: Places) -> FusedReading | None:
    """Read the measured rows into `stats`; None when the kernels cannot or shall not do it, and nothing was read.

    Args:
        stats: An ActivationStats, whose arrays the kernel adds to.
        x: The activation.
        at: Its measured rows.
    """
    if not is_readable(x) or stats.top_k > MAX_LIST or not x.shape[1]:
        return None
    work = len(at) * x.shape[1]
    kernels = library(work)
    if kernels is None:
        return None
    room = _Room(len(at), stats.top_k, stats.nonfinite.limit)
    arguments = _arguments(stats, x, at, room)
    threads = arguments.num_threads = kernels.threads(work)
    arguments.tables = tables(threads * 2 * 4 * NUM_BUCKETS)
    functions = kernels.functions
    functions.skerry_activation_scratch.restype = ctypes.c_int64
    arguments.scratch = scratch(functions.skerry_activation_scratch(ctypes.byref(arguments)))
    functions.skerry_activation_read(ctypes.byref(arguments))
    return room.reading()


class _Room:
    """Where the kernel writes what it does not add up itself."""

    def __init__(self, num_places: int, top_k: int, nonfinite_k: int) -> None:
        self.abs_max = np.empty(num_places, np.float32)
        self.square = np.empty(num_places)
        self.histogram = histogram_room()
        self.value = np.empty(top_k)
        self.places = np.empty((2, top_k), np.int64)
        self.missing = np.empty((3, nonfinite_k), np.int64)
        self.nums = np.zeros(4, np.int64)

    def reading(self) -> FusedReading:
        """The arrays, cut to what was written."""
        num, num_missing, first, end = self.nums.tolist()
        return FusedReading(
            self.abs_max,
            self.square,
            self.histogram[first:end],
            first,
            (self.value[:num], self.places[0, :num], self.places[1, :num]),
            (self.missing[0, :num_missing], self.missing[1, :num_missing], self.missing[2, :num_missing]),
        )


def _arguments(stats: Any, x: Tensor, at: Places, room: _Room) -> ctypes.Structure:
    return _Arguments(
        x=x.data_ptr(),
        row_stride=x.stride(0),
        num_channels=x.shape[1],
        num_places=len(at),
        num_samples=len(at.sample),
        row=pointer(at.row),
        start=pointer(at.start),
        sample=pointer(at.sample),
        position=pointer(at.position),
        dtype=DTYPES[x.dtype],
        top_k=stats.top_k,
        nonfinite_k=stats.nonfinite.limit,
        num_top=stats.num_top,
        want_median=stats.token_median,
        every=stats.every,
        bar=stats.largest.bar(),
        count=pointer(stats.moments.count),
        sums=pointer(stats.moments.sums),
        range=pointer(stats.range),
        value_counts=pointer(stats.value_counts),
        per_sample=pointer(stats.per_sample),
        abs_max_sum=pointer(stats.abs_max_sum),
        totals=pointer(stats.totals),
        counts=pointer(stats.counts),
        histogram=pointer(room.histogram),
        used=pointer(room.nums) + 16,
        abs_max=pointer(room.abs_max),
        square=pointer(room.square),
        value=pointer(room.value),
        value_place=pointer(room.places[0]),
        value_channel=pointer(room.places[1]),
        num_values=pointer(room.nums),
        nonfinite_kind=pointer(room.missing[0]),
        nonfinite_place=pointer(room.missing[1]),
        nonfinite_channel=pointer(room.missing[2]),
        num_nonfinite=pointer(room.nums) + 8,
    )
