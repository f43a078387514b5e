"""What a column of a run's tables holds."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa


class Column(NamedTuple):
    """One column: its Arrow type and its meaning."""

    type: pa.DataType
    meaning: str
