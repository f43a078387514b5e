"""The tables of a run: every number that skerry shows is a cell of one of these.

Each column says its unit or meaning. Detectors, report, diff and app read these tables and nothing else. A null `layer` is a
part outside the blocks; a null `expert` is a part that exists once per block. Ratios are without unit.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from skerry.run.cause_tables import CAUSE_TABLES
from skerry.run.column import Column
from skerry.run.impact_tables import IMPACT_TABLES
from skerry.run.optimize_tables import OPTIMIZE_TABLES
from skerry.run.pruning_tables import PRUNING_TABLES
from skerry.run.removal_tables import REMOVAL_TABLES
from skerry.run.study_tables import STUDY_TABLES
from skerry.run.tame_tables import TAME_TABLES
from skerry.run.training_tables import TRAINING_TABLES
from skerry.run.twin_tables import TWIN_TABLES

_I, _L, _F, _S, _B = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.bool_()
_PLACE = {
    "layer": Column(_I, "block number from 0; null outside the blocks"),
    "site": Column(_S, "part of the vocabulary, e.g. mlp.down.in"),
    "expert": Column(_I, "number of the expert; null where there is none"),
}
# A sample counts as "high" in a channel when the channel's largest |x| in that sample is at least so many times the median, over the
# channels of the site, of the same quantity in the same sample (never where it is 0). A token counts as "massive" likewise against the sample's other tokens.
HIGH_RATIOS = (3, 5, 10, 20, 50, 100)
MASSIVE_RATIOS = (4, 8, 16, 64, 256)
_HIGH = {
    f"high_{r}": Column(
        _L, f"samples in which the channel's largest |x| is >= {r} x the channel median of that sample"
    )
    for r in HIGH_RATIOS
}
_MASSIVE = {
    f"massive_{r}": Column(
        _L, f"places whose largest |x| is >= {r} x the median over the places of that sample"
    )
    for r in MASSIVE_RATIOS
}

TABLES: dict[str, dict[str, Column]] = {
    "sites": {
        **_PLACE,
        "same_as": Column(_S, "site that is the very same tensor; then this row has no numbers of its own"),
        "num_samples": Column(_L, "independent inputs measured"),
        "num_tokens": Column(_L, "tokens measured (for an expert: routed to it)"),
        "num_channels": Column(_I, "width"),
        "median": Column(_F, "median of |x| (relative error 1 %)"),
        "q99": Column(_F, "0.99 quantile of |x| (relative error 1 %)"),
        "q999": Column(_F, "0.999 quantile of |x| (relative error 1 %)"),
        "q9999": Column(_F, "0.9999 quantile of |x| (relative error 1 %)"),
        "min": Column(_F, "smallest value"),
        "max": Column(_F, "largest value"),
        "abs_max": Column(_F, "largest |x|"),
        "mean": Column(_F, "mean of all values"),
        "rms": Column(_F, "root of the mean square of all values"),
        "kurtosis": Column(_F, "pooled m4 / m2^2 of all values about their mean; 3 for a Gaussian"),
        "kurtosis_channels": Column(
            _F,
            "mean_j s_j^2 / (mean_j s_j)^2, s_j the mean square of channel j (He et al. 2405.19279); 1..width",
        ),
        "kurtosis_oft": Column(
            _F, "m4 / s^4 per sample, averaged over samples (Bondarenko et al. 2306.12929)"
        ),
        "kurtosis_osp": Column(
            _F,
            "mean over tokens of max(0, mean x^4 / var^2 - 3), x^4 not centred, var unbiased (Park et al. 2506.19697), full context",
        ),
        "max_to_median_token": Column(
            _F,
            "max|x| / median|x| of a token (1 %), averaged over tokens (He et al.: MMR), over every eighth in widths from 256; NaN where not measured",
        ),
        "max_inf_norm": Column(_F, "largest |x| of a sample, averaged over samples (Bondarenko et al.)"),
        "zero": Column(_F, "share of exact zeros"),
        "near_zero": Column(_F, "share of values below 0.1 x the RMS of their token"),
        "num_nan": Column(_L, "NaN values; left out of all other statistics"),
        "num_inf": Column(_L, "infinite values; left out of all other statistics"),
    },
    "channels": {
        **_PLACE,
        "channel": Column(_I, "number of the channel"),
        "count": Column(_L, "finite values measured"),
        "num_samples": Column(_L, "samples in which the channel was measured"),
        "min": Column(_F, "smallest value"),
        "max": Column(_F, "largest value"),
        "mean": Column(_F, "mean"),
        "std": Column(_F, "standard deviation (population)"),
        "skewness": Column(_F, "m3 / m2^1.5"),
        "kurtosis": Column(_F, "m4 / m2^2; 3 for a Gaussian"),
        "zero": Column(_F, "share of exact zeros"),
        "near_zero": Column(_F, "share of values below 0.1 x the RMS of their token"),
        "num_nonfinite": Column(_L, "NaN and infinite values"),
        "top": Column(
            _L, "samples in which the channel is among the top_k channels of its site by largest |x|"
        ),
        "top_k": Column(_I, "how many channels count as top: max(1, width / 100)"),
        "positive": Column(_L, "samples in which the value of largest |x| is positive"),
        "abs_max_mean": Column(_F, "mean over samples of the channel's largest |x|"),
        **_HIGH,
    },
    "values": {
        **_PLACE,
        "rank": Column(_I, "0 is the largest |x| of the site"),
        "value": Column(_F, "signed value"),
        "sample": Column(_L, "number of the input"),
        "position": Column(_I, "position in the input"),
        "token_id": Column(_L, "token id there"),
        "token": Column(_S, "token as text; null without a tokenizer"),
        "channel": Column(_I, "channel"),
    },
    "nonfinite": {
        **_PLACE,
        "kind": Column(_S, "nan or inf"),
        "sample": Column(_L, "number of the input (activations)"),
        "position": Column(_I, "position in the input (activations); row (weights)"),
        "channel": Column(_I, "channel (activations); column (weights)"),
    },
    "positions": {
        **_PLACE,
        "position": Column(_I, "position in the input"),
        "count": Column(_L, "tokens measured there"),
        "abs_max": Column(_F, "largest |x| of any token there"),
        "abs_max_mean": Column(_F, "mean over samples of the token's largest |x|"),
        "norm_mean": Column(_F, "mean over samples of the token's Euclidean norm"),
        **_MASSIVE,
    },
    "tokens": {
        **_PLACE,
        "token_id": Column(_L, "token id"),
        "token": Column(_S, "token as text; null without a tokenizer"),
        "count": Column(_L, "occurrences measured"),
        "num_samples": Column(_L, "samples in which the token occurs"),
        "abs_max_mean": Column(_F, "mean over occurrences of the largest |x|"),
        **_MASSIVE,
    },
    "heads": {
        "layer": Column(_I, "block number from 0"),
        "head": Column(_I, "query head"),
        "kv_head": Column(_I, "key/value head that it reads"),
        "num_samples": Column(_L, "independent inputs measured"),
        "num_queries": Column(_L, "query rows measured"),
        "entropy": Column(_F, "mean entropy of a query row, nats"),
        "entropy_uniform": Column(_F, "mean entropy if every visible key got the same, nats"),
        "max_prob": Column(_F, "mean over query rows of the largest weight"),
        "logit_min": Column(_F, "smallest visible logit"),
        "logit_max": Column(_F, "largest visible logit"),
        "logit_mean": Column(_F, "mean visible logit"),
        "logit_std": Column(_F, "standard deviation of visible logits"),
        "sink_logit_mass": Column(_F, "mean weight that a learned sink logit takes; 0 where there is none"),
        "value_norm": Column(_F, "mean Euclidean norm of the value vectors"),
        "num_nonfinite": Column(_L, "NaN and +inf logits"),
    },
    "keys": {
        "layer": Column(_I, "block number from 0"),
        "head": Column(_I, "query head"),
        "position": Column(_I, "key position"),
        "num_samples": Column(_L, "inputs that have this position"),
        "received": Column(_F, "sum of the weights that queries give to this key"),
        "exposure": Column(_F, "number of query rows that could see this key"),
        "alpha": Column(_F, "mean over inputs of received / exposure (Gu et al. 2410.10781)"),
        "sink": Column(_L, "inputs in which received / exposure > 0.3 and at least 8 queries could see it"),
        "value_norm": Column(_F, "mean Euclidean norm of the value vector there"),
    },
    "key_tokens": {
        "layer": Column(_I, "block number from 0"),
        "token_id": Column(_L, "token id"),
        "token": Column(_S, "token as text; null without a tokenizer"),
        "count": Column(_L, "occurrences"),
        "num_samples": Column(_L, "inputs in which it occurs"),
        "received": Column(_F, "mean over heads of the weight received, summed over occurrences"),
        "exposure": Column(_F, "query rows that could see it, summed over occurrences"),
        "sink_heads": Column(
            _F, "mean over occurrences of the share of heads in which it is a sink, as in `keys`"
        ),
    },
    "matrices": {
        **_PLACE,
        "num_rows": Column(_I, "rows (outputs); 1 for norms"),
        "num_columns": Column(_I, "columns (inputs)"),
        "min": Column(_F, "smallest value"),
        "max": Column(_F, "largest value"),
        "abs_max": Column(_F, "largest |w|"),
        "mean": Column(_F, "mean"),
        "mean_abs": Column(_F, "mean |w|"),
        "median": Column(_F, "median of |w| (relative error 1 %)"),
        "std": Column(_F, "standard deviation (population)"),
        "skewness": Column(_F, "m3 / m2^1.5"),
        "kurtosis": Column(_F, "m4 / m2^2; 3 for a Gaussian"),
        "zero": Column(_F, "share of exact zeros"),
        "num_nan": Column(_L, "NaN entries"),
        "num_inf": Column(_L, "infinite entries"),
    },
    "lines": {
        **_PLACE,
        "axis": Column(_S, "row or column"),
        "index": Column(_I, "number of the row or column"),
        "min": Column(_F, "smallest value"),
        "max": Column(_F, "largest value"),
        "mean": Column(_F, "mean"),
        "mean_abs": Column(_F, "mean |w|"),
        "std": Column(_F, "standard deviation (population)"),
        "skewness": Column(_F, "m3 / m2^1.5"),
        "kurtosis": Column(_F, "m4 / m2^2"),
        "norm": Column(_F, "Euclidean norm"),
    },
    "entries": {
        **_PLACE,
        "rank": Column(_I, "0 is the largest |w| of the matrix"),
        "row": Column(_I, "row"),
        "column": Column(_I, "column"),
        "value": Column(_F, "signed value"),
    },
}


# Weights are a stage of their own, so their table is; the columns are the same.
TABLES["nonfinite_weights"] = TABLES["nonfinite"]
TABLES.update(CAUSE_TABLES)
TABLES.update(PRUNING_TABLES)
TABLES.update(REMOVAL_TABLES)
TABLES.update(IMPACT_TABLES)
TABLES.update(TAME_TABLES)
TABLES.update(STUDY_TABLES)
TABLES.update(TRAINING_TABLES)
TABLES.update(TWIN_TABLES)
TABLES.update(OPTIMIZE_TABLES)


def schema(name: str) -> pa.Schema:
    """The Arrow schema of a table, meanings attached as field metadata."""
    return pa.schema([pa.field(n, c.type, metadata={"meaning": c.meaning}) for n, c in TABLES[name].items()])


def from_rows(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """A table of the run from rows as mappings; columns that a row leaves out are null.

    Raises:
        ValueError: A row has a column that the table does not know.
    """
    wanted = schema(name)
    if unknown := {key for row in rows for key in row} - set(wanted.names):
        raise ValueError(f"table {name!r} has no column {sorted(unknown)}; it has {wanted.names}")
    return pa.Table.from_pylist(rows, schema=wanted)
