"""The tables of what things cost: whole-model quantization, quantization site by site, clipping.

An interval (`ci_low`, `ci_high`) is a paired percentile bootstrap over independent inputs at 95 %. A change is the measure with the thing
done minus the same measure of the untouched model on the same inputs; the damage is the loss of a causal model, the distance of an encoder.
"""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_I, _L, _F, _S, _B = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.bool_()
_OUTCOME = {
    "outcome": Column(_S, "loss (nats per token) or distance (of last hidden states, in variances)"),
}
_CHANGE = {
    "change": Column(_F, "mean of the outcome with - without, over tokens"),
    "ci_low": Column(_F, "lower end of the 95 % interval over inputs; null where none was computed"),
    "ci_high": Column(_F, "upper end of it"),
}

IMPACT_TABLES: dict[str, dict[str, Column]] = {
    "quantization_grid": {
        "scheme": Column(_S, "the scheme; `original` is the untouched model on the same inputs"),
        **_OUTCOME,
        "value": Column(_F, "the outcome with the whole model quantized"),
        **_CHANGE,
        "perplexity": Column(_F, "exp(loss); null for an encoder"),
        "kl": Column(
            _F, "mean divergence from the original's prediction, nats per token; null for an encoder"
        ),
        "top1": Column(
            _F, "share of tokens whose most likely next token is the original's; null for an encoder"
        ),
        "cosine": Column(
            _F, "mean cosine of an input's mean-pooled embedding with the original's; null for a causal model"
        ),
        "neighbours": Column(
            _F,
            "mean share of an input's 10 nearest inputs that stay (half of the others, when fewer than 20); null for a causal model",
        ),
        "num_samples": Column(_L, "inputs measured"),
        "note": Column(_S, "what was not done and why; null when all was"),
    },
    "quantization_sites": {
        "layer": Column(_I, "block number from 0"),
        "site": Column(
            _S,
            "what alone was quantized: the input of linear maps (attn.in, ...) or a weight part (w.q, ...)",
        ),
        "expert": Column(_I, "number of the expert; null: all experts of the block together, or none"),
        "map": Column(_S, "linear maps that read the input or hold the weight, separated by commas"),
        "scheme": Column(_S, "the scheme of which only this was done"),
        "low": Column(_F, "smallest value"),
        "high": Column(_F, "largest value"),
        "central_levels": Column(
            _F,
            "share of the grid's levels that lie within the central 99 % of the values, mean over grids; null for floating-point grids",
        ),
        "num_levels": Column(_L, "levels of one grid; null for floating-point grids"),
        "snr_db": Column(_F, "10 log10(sum x^2 / sum (x - quantized x)^2)"),
        **_OUTCOME,
        **_CHANGE,
        "change_without_channels": Column(_F, "the change when the outlier channels stay in full precision"),
        "share_channels": Column(
            _F,
            "1 - change_without_channels / change: what they alone cause; null unless the change's interval is above 0",
        ),
        "num_channels": Column(
            _L, "outlier channels that stayed, of all maps and experts; each tensor's counted once"
        ),
        "channels_from": Column(
            _S, "findings: as the scan found them; range: the widest 1 % of channels, for want of findings"
        ),
        "change_without_tokens": Column(
            _F,
            "the change when the outlier tokens stay in full precision; null for weights and without such tokens",
        ),
        "share_tokens": Column(_F, "1 - change_without_tokens / change; null as share_channels"),
        "num_tokens": Column(
            _L, "tokens whose largest |x| is above 20 x the median over tokens; null for weights"
        ),
        "num_samples": Column(_L, "inputs measured"),
    },
    "clipping": {
        "site": Column(
            _S,
            "what was clipped: `inputs` of all linear maps, or `residual`: the stream after every block but the last",
        ),
        "threshold": Column(
            _F,
            "largest |x| that stays, median over the places clipped: each has its own, at the same quantile",
        ),
        "quantile": Column(_F, "quantile of |x| of each place that is its threshold"),
        "share_clipped": Column(_F, "share of values changed"),
        "control": Column(
            _B,
            "whether as many random values below the threshold were moved by the same amounts instead, towards zero",
        ),
        "draw": Column(_I, "number of the control's random draw; null otherwise"),
        **_OUTCOME,
        **_CHANGE,
        "num_samples": Column(_L, "inputs measured"),
    },
}
