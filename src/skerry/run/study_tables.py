"""The tables of a study: every training, its curve, its layers, what rounding and pruning cost it, and what each label gives beside the baseline."""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_I, _L, _F, _S = pa.int32(), pa.int64(), pa.float64(), pa.string()
_ARM = {
    "label": Column(_S, "what is compared: a variant, perhaps with its options"),
    "size": Column(_S, "name of the size"),
    "seed": Column(_L, "of weights and windows"),
}
_HEADLINE = {
    "max_to_median": Column(
        _F, "largest |x| / median |x| of the stream behind a block, the largest of all blocks"
    ),
    "kurtosis": Column(_F, "pooled m4 / m2^2 of the stream behind a block, the largest of all blocks"),
    "first_share": Column(_F, "share of attention on the first token in the strongest head of all (alpha_1)"),
    "value_drain": Column(_F, "norm of the first token's value / mean norm of the others', in that head"),
    "sink_rate": Column(_F, "share of heads and inputs whose first token has alpha > 0.3, mean over blocks"),
    "down_in_max": Column(_F, "largest |x| that a down projection reads"),
    "down_in_max_to_median": Column(_F, "the same / median |x|, the largest of all blocks"),
    "weight_ratio": Column(_F, "largest max|w| / mean|w| of a row or column of a down projection"),
}

STUDY_TABLES: dict[str, dict[str, Column]] = {
    "study_arms": {
        **_ARM,
        "folder": Column(_S, "of the training, below the study's folder"),
        "key": Column(_S, "what decides the result: recipe, measurements, text, versions"),
        "parameters": Column(_L, "of the decoder"),
        "tokens": Column(_L, "trained on"),
        "loss": Column(_F, "mean loss on held-out windows, nats per token"),
        **_HEADLINE,
        "tokens_per_second": Column(_F, "of this training, beside whatever else the machine did"),
        "seconds": Column(_F, "training and measuring"),
        "note": Column(_S, "why there are no numbers: a loss that was no longer finite"),
    },
    "study_curve": {
        **_ARM,
        "step": Column(_L, "optimizer steps done"),
        "loss": Column(_F, "mean loss on 64 held-out windows, the same for all seeds of a size"),
        "training_loss": Column(_F, "of the batch of that step, before the step"),
        **_HEADLINE,
    },
    "study_layers": {
        **_ARM,
        "layer": Column(_I, "block number from 0"),
        "max_to_median": Column(_F, "of the stream behind the block"),
        "kurtosis": Column(_F, "of the stream behind the block"),
        "head": Column(_I, "that gives most attention to the first token"),
        "first_share": Column(_F, "its share"),
        "value_drain": Column(_F, "norm of the first token's value / mean norm of the others', in that head"),
        "sink_rate": Column(_F, "share of heads and inputs whose first token has alpha > 0.3"),
        "down_in_max": Column(_F, "largest |x| that the down projection reads"),
        "down_in_max_to_median": Column(_F, "the same / median |x|"),
        "weight_ratio": Column(_F, "largest max|w| / mean|w| of a row or column of the down projection"),
    },
    "study_compressed": {
        **_ARM,
        "what": Column(_S, "a quantization scheme, rounding to nearest, or a pruning"),
        "loss": Column(_F, "mean loss on the held-out windows, nats per token"),
        "change": Column(_F, "the same without the loss of the untouched decoder"),
        "ci_low": Column(_F, "lower end of its 95 % bootstrap interval over windows"),
        "ci_high": Column(_F, "upper end of it"),
    },
    "study_quantities": {
        "label": _ARM["label"],
        "size": _ARM["size"],
        "quantity": Column(
            _S, "what is compared, e.g. loss, max_to_median, change w8a8-tensor, steps_to_baseline"
        ),
        "kind": Column(_S, "difference or ratio: how it stands beside the baseline"),
        "value": Column(_F, "mean over seeds; of ratios geometric"),
        "ci_low": Column(_F, "lower end of its 95 % interval; null where there is none"),
        "ci_high": Column(_F, "upper end of it"),
        "versus": Column(_F, "difference to, or ratio to, the baseline of the same seeds and windows"),
        "versus_low": Column(_F, "lower end of its 95 % interval; null where there is none"),
        "versus_high": Column(_F, "upper end of it"),
        "over": Column(_S, "what the interval is over: windows, seeds, windows and seeds, rounds"),
        "num_seeds": Column(_L, "seeds with a number"),
        "note": Column(_S, "what a reader must know"),
    },
    "study_battery": {
        **_ARM,
        "task": Column(_S, "of the functional battery"),
        "measure": Column(_S, "what of it"),
        "value": Column(_F, "the score"),
        "low": Column(_F, "lower end of its 95 % bootstrap interval over inputs"),
        "high": Column(_F, "upper end of it"),
        "better": Column(_S, "higher or lower"),
        "chance": Column(
            _F, "what a model gives that cannot do the task; null where there is no such number"
        ),
    },
    "study_speed": {
        "label": _ARM["label"],
        "size": _ARM["size"],
        "ratio": Column(
            _F, "speed of training beside the baseline's, steps taken in turn; median over rounds"
        ),
        "low": Column(_F, "smallest round"),
        "high": Column(_F, "largest round"),
        "seconds_per_step": Column(_F, "median, beside whatever else the machine did"),
        "tokens_per_second": Column(_F, "the same in tokens"),
        "num_rounds": Column(_L, "comparisons"),
    },
}
