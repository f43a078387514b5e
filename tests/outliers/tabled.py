"""Small tables by hand: name the columns that matter, the rest is null or zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from skerry.run.tables import HIGH_RATIOS, schema

_NULL = ("layer", "expert", "site", "same_as", "token", "axis", "kind")


def table(name: str, **columns: Any) -> pa.Table:
    """One table; scalars are repeated, columns that are not named are zero (places and words: null)."""
    num = max(len(v) for v in columns.values() if isinstance(v, list | np.ndarray | range))
    arrays = []
    for field in schema(name):
        value = columns.pop(field.name, None if field.name in _NULL else 0)
        values = value if isinstance(value, list | np.ndarray | range) else [value] * num
        arrays.append(
            pa.array(np.asarray(values).tolist() if isinstance(values, np.ndarray) else list(values)).cast(
                field.type
            )
        )
    assert not columns, columns
    return pa.Table.from_arrays(arrays, schema=schema(name))


def join(*many: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Tables of several sites together."""
    names = {name for tables in many for name in tables}
    return {name: pa.concat_tables([t[name] for t in many if name in t]) for name in names}


def activation(
    layer: int, site: str, low: Any, high: Any, *, median: float = 1.0, num_samples: int = 32, **more: Any
) -> dict[str, pa.Table]:
    """`sites` and `channels` of one site whose channels reach [low, high] in every input alike."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    size = np.maximum(-low, high)
    counts = {f"high_{r}": np.where(size >= r * np.median(size), num_samples, 0) for r in HIGH_RATIOS}
    place = {"layer": layer, "site": site}
    return {
        "sites": table("sites", **place, num_samples=num_samples, num_tokens=[100 * num_samples], num_channels=len(size), median=median,
                       min=low.min(), max=high.max(), abs_max=size.max(), kurtosis=3.0, kurtosis_channels=1.0,
                       max_inf_norm=size.max(), **more),
        "channels": table("channels", **place, channel=range(len(size)), count=100 * num_samples, num_samples=num_samples, min=low, max=high,
                          mean=(low + high) / 2, std=(high - low) / 8, kurtosis=3.0, abs_max_mean=size, top_k=max(1, len(size) // 100),
                          positive=np.where(high >= -low, num_samples, 0), **counts),
    }  # fmt: skip


def ordinary(num: int, *, seed: int = 0, size: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of ordinary channels: symmetric, largest |x| within some percent of `size`."""
    rng = np.random.default_rng(seed)
    return -size * np.exp(0.1 * rng.standard_normal(num)), size * np.exp(0.1 * rng.standard_normal(num))
