"""The tables of a model from the real scan: the one place that the tests of planted outliers would change."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def tables_of(model: Any, batches: Any) -> dict[str, pa.Table]:
    """Tables of everything that a scan measures, without a run directory."""
    from skerry.anatomy import resolve
    from skerry.measure import Meter, weight_stats
    from skerry.outliers.tabulate import activation_tables, weight_tables

    anatomy = resolve(model)
    meter = Meter(anatomy)
    for batch in batches:
        meter.read(batch)
    seen = activation_tables(meter)
    weights = weight_tables(
        (site, weight_stats(anatomy.weight(site)).result()) for site in anatomy.weight_sites
    )
    both = [t["nonfinite"] for t in (seen, weights) if "nonfinite" in t]
    return {**weights, **seen, "nonfinite": pa.concat_tables(both)}
