"""Long rows of numbers, packed for the report: max-pooled to a few hundred columns and two bytes a number.

Value x is stored as round(32767 asinh(x / m) / asinh(M / m)) with m the site's median and M its largest size, so that a pooled bar is right
to 0.1 % both at the median and at an outlier a thousand times above. The outliers themselves are listed beside the strip, exactly.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable, Sequence

import numpy as np
import pyarrow as pa

Array = np.ndarray
Rows = dict[str, Array]


def split(table: pa.Table, by: Sequence[str], columns: Sequence[str]) -> dict[tuple[Hashable, ...], Rows]:
    """The rows of a table by the values of some columns, as numpy; nulls of a key are None.

    One sort for the whole table: a 32-layer model has millions of rows.
    """
    if table.num_rows == 0:
        return {}
    codes = np.zeros(table.num_rows, dtype=np.int64)
    labels: list[list[Hashable]] = []
    for name in by:
        encoded = table.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
        labels.append(encoded.dictionary.to_pylist())
        codes = codes * len(labels[-1]) + encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    arrays = {c: table.column(c).combine_chunks().to_numpy(zero_copy_only=False)[order] for c in columns}
    parts = {c: np.split(a, cuts) for c, a in arrays.items()}
    out: dict[tuple[Hashable, ...], Rows] = {}
    for i, start in enumerate([0, *cuts]):
        code, key = int(codes[order[start]]), []
        for values in reversed(labels):
            code, at = divmod(code, len(values))
            key.append(values[at])
        out[tuple(reversed(key))] = {c: parts[c][i] for c in columns}
    return out


def pool(values: Array, columns: int, *, largest: bool = True) -> tuple[Array, int]:
    """Neighbours joined to at most `columns` numbers, each the largest (or smallest) of its own; and how many share one."""
    width = max(1, -(-len(values) // columns))
    padded = np.full(-(-len(values) // width) * width, -np.inf if largest else np.inf)
    padded[: len(values)] = np.nan_to_num(values, nan=0.0, posinf=3e38, neginf=-3e38)
    grid = padded.reshape(-1, width)
    return (grid.max(1) if largest else grid.min(1)), width


def pack(values: Array, *, unit: float | int, top: float | int) -> str:
    """Numbers of size at most `top` as base64 of little-endian int16 on the asinh scale."""
    scale = 32767 / np.arcsinh(top / unit)
    codes = np.clip(np.rint(np.arcsinh(values / unit) * scale), -32767, 32767).astype("<i2")
    return base64.b64encode(codes.tobytes()).decode()


def strip(low: Array | None, high: Array, *, unit: float | int, columns: int) -> dict[str, object]:
    """A packed strip: its length `n`, how many neighbours share a column `k`, scales `m` and `M`, packed `hi` and perhaps `lo`.

    Args:
        low: Smallest values by place; None for strips that start at zero.
        high: Largest values by place.
        unit: What is normal there (the median), for the scale.
        columns: Most columns to keep.
    """
    highest, width = pool(high, columns)
    lowest = None if low is None else pool(low, columns, largest=False)[0]
    top = float(max(np.abs(highest).max(), 0 if lowest is None else np.abs(lowest).max())) or 1.0
    unit = unit if 0 < unit < top else top / 10
    out: dict[str, object] = {"n": len(high), "k": width, "m": rounded(unit), "M": rounded(top)}
    # The reader decodes with the rounded scales, so encode with them.
    unit, top = float(f"{unit:.5g}"), float(f"{top:.5g}")
    out["hi"] = pack(highest, unit=unit, top=top)
    if lowest is not None:
        out["lo"] = pack(lowest, unit=unit, top=top)
    return out


def rounded(x: float | int | None, digits: int = 5) -> float | int | str | None:
    """A number for JSON with few digits; infinity as a word, since JSON has none; NaN as null."""
    if x is None or np.isnan(x):
        return None
    if np.isinf(x):
        return "Infinity" if x > 0 else "-Infinity"
    value = float(f"{x:.{digits}g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
