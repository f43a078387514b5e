"""The tables of pruning: what it costs at each sparsity, and how outliers decide what is removed.

A mask is looked at per weight part, so that a fused projection gives one row each for q, k and v. Outlier weights and outlier channels are
counted in the model at hand; they need not be findings of a scan.
"""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_I, _L, _F, _S = pa.int32(), pa.int64(), pa.float64(), pa.string()

PRUNING_TABLES: dict[str, dict[str, Column]] = {
    "pruning": {
        "method": Column(
            _S, "magnitude, magnitude-global, wanda, owl, sparsegpt or owl-sparsegpt; `random` is the control"
        ),
        "scope": Column(
            _S, "weights that are compared with each other: model, map, row, or columns (128 of all rows)"
        ),
        "sparsity": Column(_F, "share of the weights of linear maps that was asked to go"),
        "reached": Column(_F, "share that is gone, counted in the masks"),
        "outcome": Column(
            _S, "loss, kl or top1 of a causal model; distance, cosine or neighbours of an encoder"
        ),
        "value": Column(_F, "the outcome of the pruned model"),
        "change": Column(_F, "pruned minus untouched, mean over tokens (cosine, neighbours: over inputs)"),
        "ci_low": Column(_F, "lower end of the paired 95 % bootstrap interval over inputs"),
        "ci_high": Column(_F, "upper end of it"),
        "num_samples": Column(_L, "inputs measured; calibration read others"),
        "note": Column(_S, "what the reader must know; null when nothing"),
    },
    "pruning_conflict": {
        "layer": Column(_I, "block number from 0"),
        "site": Column(_S, "weight part, e.g. w.down"),
        "expert": Column(_I, "number of the expert; null where there is none"),
        "method": Column(_S, "as in `pruning`"),
        "sparsity": Column(_F, "share asked of the whole model"),
        "num_weights": Column(_L, "weights of the part"),
        "num_outlier_weights": Column(_L, "weights with |w| above 6 standard deviations of their part"),
        "share_outliers_kept": Column(_F, "share of the outlier weights that is kept; null without any"),
        "share_rest_kept": Column(_F, "share of all other weights of the part that is kept"),
        "num_outlier_channels": Column(
            _I, "input channels of largest norm over the calibration tokens: 1 % of the width, at least one"
        ),
        "share_outlier_channels_kept": Column(_F, "share of the weights in those channels that is kept"),
        "share_kept_in_outlier_channels": Column(
            _F,
            "share of the kept weights that lies in those channels; about 0.01 when they get no more than others",
        ),
        "share_in_band": Column(
            _F,
            "share of the weights outside those channels whose fate the channels decide: score between the two thresholds. "
            "Positive: removed since the channels take their places among the kept; negative: kept since the channels go first",
        ),
        "threshold": Column(
            _F,
            "largest score that is removed, in the score's own unit; median over the groups that are compared",
        ),
        "threshold_without_outliers": Column(
            _F, "the same when scores are compared without those channels, at the same sparsity"
        ),
    },
}
