"""The table of a search: every trial and goal."""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_L, _F, _S, _B = pa.int64(), pa.float64(), pa.string(), pa.bool_()

OPTIMIZE_TABLES: dict[str, dict[str, Column]] = {
    "optimize_trials": {
        "trial": Column(
            _L, "number of the trial, from 0; the first is the recipe that the search began with"
        ),
        "goal": Column(_S, "what is to be small: loss, int8, int4, outlier, or a scheme"),
        "value": Column(
            _F, "mean over seeds, nats per token, for outlier a ratio; null where the trial failed"
        ),
        "on_front": Column(_B, "no other trial is as good in every goal and better in one"),
        "chosen": Column(_S, "fields of the recipe that were chosen, as JSON"),
        "seconds": Column(_F, "time of the trial, training and measuring"),
        "reason": Column(_S, "why it failed; null where it did not"),
    },
}
