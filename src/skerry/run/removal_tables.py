"""The table of removal in the quantized model: what outliers are for once the model is quantized."""

from __future__ import annotations

import pyarrow as pa

from skerry.run.cause_tables import CAUSE_TABLES
from skerry.run.column import Column

REMOVAL_TABLES: dict[str, dict[str, Column]] = {
    "quantized_removal": {
        "scheme": Column(
            pa.string(), "how the model is quantized, both where outliers are removed and where they are not"
        ),
        **CAUSE_TABLES["effects"],
    },
}
