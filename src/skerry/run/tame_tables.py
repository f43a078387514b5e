"""The tables of taming: what was tried, what it cost, what each seam was given, and the proof that the model stayed the same.

An interval (`ci_low`, `ci_high`) is a percentile bootstrap over held-out inputs at 95 %, of with - without on the same inputs.
"""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_I, _L, _F, _S, _B = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.bool_()
_INTERVAL = {
    "ci_low": Column(
        _F, "lower end of the 95 % interval of the change over held-out inputs; null without inputs"
    ),
    "ci_high": Column(_F, "upper end of it"),
}
_METHOD = {"method": Column(_S, "method, or pipeline of methods joined by commas; `none` is the original")}

TAME_TABLES: dict[str, dict[str, Column]] = {
    "methods": {
        **_METHOD,
        "scheme": Column(
            _S, "how the model was quantized; `float` for the changed model before quantization"
        ),
        "seed": Column(_I, "seed that chose the calibration inputs"),
        "outcome": Column(_S, "what damage is: loss (nats per token) or distance (of last hidden states)"),
        "value": Column(_F, "mean of the outcome over held-out tokens"),
        "change": Column(_F, "mean over inputs of with - without, the original being without"),
        **_INTERVAL,
        "perplexity": Column(_F, "exp of the loss; null without a head that predicts"),
        "kl": Column(
            _F, "divergence of the prediction from the original's, nats per token; null without such a head"
        ),
        "top1": Column(
            _F,
            "share of tokens with the same most likely next token as the original; null without such a head",
        ),
        "cosine": Column(
            _F, "mean cosine of sentence embeddings with the original's; null with a head that predicts"
        ),
        "neighbours": Column(
            _F, "share of the 10 nearest sentences that stay the same; null with such a head"
        ),
        "num_samples": Column(_L, "held-out inputs"),
        "seconds": Column(_F, "time of the search and the folding, without evaluation"),
        "chosen": Column(_B, "whether the exported model is this one"),
        "note": Column(_S, "why it was refused, or what was left out; null without"),
    },
    "seam_changes": {
        **_METHOD,
        "seam": Column(_S, "name of the seam, e.g. 3.norm.attn, 3.v-o, 3.up-down"),
        "kind": Column(_S, "norm, value, up, post-norm"),
        "layer": Column(_I, "block of the readers"),
        "site": Column(_S, "part of the vocabulary: the tensor that was changed"),
        "threshold": Column(_F, "largest value that the tensor keeps; null for methods without a threshold"),
        "threshold_low": Column(
            _F, "smallest value that it keeps, where it differs from minus the threshold"
        ),
        "scale_min": Column(_F, "smallest scale of a channel; null without a scale"),
        "scale_max": Column(_F, "largest scale"),
        "num_scaled": Column(_I, "channels whose scale is not 1"),
        "shift_max": Column(_F, "largest |shift|; null without a shift"),
        "range_before": Column(_F, "max - min of the tensor before"),
        "range_after": Column(_F, "max - min of (x - shift) / scale"),
        "loss_before": Column(
            _F,
            "the search's own loss without a change: squared error of what the readers give, as a share of its energy (os+) or as a mean (others)",
        ),
        "loss_after": Column(_F, "the same with the change"),
        "candidates": Column(_I, "changes that were evaluated"),
        "seconds": Column(_F, "time of the search"),
        "skipped": Column(_S, "why the seam was left alone; null where it was changed"),
    },
    "channel_ranges": {
        **_METHOD,
        "seam": Column(_S, "name of the seam"),
        "site": Column(_S, "part of the vocabulary"),
        "layer": Column(_I, "block of the readers"),
        "channel": Column(_I, "channel of the tensor; the most changed ones and some others evenly chosen"),
        "low_before": Column(_F, "smallest value in calibration"),
        "high_before": Column(_F, "largest value"),
        "low_after": Column(_F, "smallest value after the change"),
        "high_after": Column(_F, "largest value after it"),
    },
    "parts": {
        "scheme": Column(_S, "how the model was quantized"),
        "step": Column(_I, "number of the step; each adds one part to the step before"),
        "part": Column(_S, "what was added"),
        "outcome": Column(_S, "loss or distance"),
        "loss": Column(_F, "mean of the outcome over held-out tokens"),
        "change": Column(_F, "mean over inputs of this step - the step before"),
        **_INTERVAL,
    },
    "equivalence": {
        **_METHOD,
        "check": Column(_S, "float64 (proof before folding) or stored (outputs after folding)"),
        "error": Column(_F, "|new - old| / |old| of the outputs"),
        "bound": Column(_F, "what it may be"),
        "dtype": Column(_S, "dtype of the comparison"),
        "num_tokens": Column(_L, "tokens compared"),
    },
    "overhead": {
        **_METHOD,
        "seconds_before": Column(
            _F,
            "time of a forward of the original on one batch, best of several, taken in turn with the other",
        ),
        "seconds_after": Column(_F, "the same of the changed model"),
        "parameters_before": Column(_L, "parameters of the original"),
        "parameters_after": Column(_L, "parameters of the changed model"),
        "operations_added": Column(
            _I, "operations that a forward has more: hooks of compensated shortcuts, online rotations"
        ),
    },
}
