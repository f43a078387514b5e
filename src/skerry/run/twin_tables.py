"""The table of twins: models that were trained alike and differ in their attention only, side by side."""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_I, _L, _F, _S = pa.int32(), pa.int64(), pa.float64(), pa.string()

TWIN_TABLES: dict[str, dict[str, Column]] = {
    "twins": {
        "model": Column(_S, "name of the model"),
        "attention": Column(_S, "its attention variant"),
        "num_parameters": Column(_L, "parameters; shared ones count once"),
        "loss": Column(_F, "next-token loss on the inputs of this run, nats per token"),
        "max_to_median": Column(
            _F, "largest |x| / median of |x| of the residual stream, largest of all blocks"
        ),
        "sink_layer": Column(
            _I,
            "block of the strongest sink head: most attention on the first token, of the heads whose first value is "
            "shorter than the others'; of all heads where there is none",
        ),
        "sink_head": Column(_I, "number of that head"),
        "sink_share": Column(_F, "mean attention of that head on the first token, from queries that see it"),
        "sink_value": Column(_F, "norm of the first token's value / mean norm of the others', in that head"),
    },
    "twin_costs": {
        "model": Column(_S, "name of the model"),
        "scheme": Column(_S, "how it was quantized, rounding to nearest"),
        "change": Column(_F, "loss quantized - loss, nats per token"),
        "ci_low": Column(_F, "lower end of the 95 % interval over inputs"),
        "ci_high": Column(_F, "upper end of it"),
    },
}
