"""The tables of outliers over the steps of a training: what was read at each step, when each kind was born, which came first."""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_I, _L, _F, _S = pa.int32(), pa.int64(), pa.float64(), pa.string()
_SERIES = {"series": Column(_S, "name of the training; one of several, e.g. seeds")}
_PLACE = {
    "layer": Column(_I, "block number from 0; null outside the blocks"),
    "site": Column(_S, "part of the vocabulary: resid.out, mlp.down.in, attn.probs, w.down"),
    "expert": Column(_I, "number of the expert; null where there is none"),
}

TRAINING_TABLES: dict[str, dict[str, Column]] = {
    "losses": {
        "step": Column(_L, "optimizer steps done, from 1"),
        "loss": Column(_F, "mean loss of the step's windows before the step, nats per token"),
        "gradient_norm": Column(_F, "Euclidean norm of the whole gradient before clipping"),
        "learning_rate": Column(_F, "of the step"),
        "seconds": Column(_F, "time of the step"),
        "parts": Column(_S, "parts of the objective by name, as JSON; null for the plain loss"),
    },
    "births": {
        **_SERIES,
        "step": Column(_L, "optimizer steps done"),
        "kind": Column(_S, "activation, attention or weight"),
        **_PLACE,
        "num_tokens": Column(_L, "tokens measured; null for weights"),
        "abs_max": Column(_F, "largest |x| of activation or matrix"),
        "median": Column(_F, "median of |x| (relative error 1 %)"),
        "max_to_median": Column(_F, "abs_max / median; null where the median is 0"),
        "kurtosis": Column(_F, "pooled m4 / m2^2 about the mean; 3 for a Gaussian"),
        "kurtosis_channels": Column(
            _F, "mean_j s_j^2 / (mean_j s_j)^2, s_j the mean square of channel j (He et al. 2405.19279)"
        ),
        "kurtosis_oft": Column(_F, "m4 / s^4 per sample, averaged (Bondarenko et al. 2306.12929)"),
        "kurtosis_osp": Column(
            _F, "excess kurtosis per token, x^4 not centred, averaged (Park et al. 2506.19697), full context"
        ),
        "head": Column(_I, "attention: the head that gives most to the first token"),
        "first_share": Column(
            _F, "attention: mean over inputs of received / exposure of the first token in that head (alpha_1)"
        ),
        "sink_rate": Column(
            _F,
            "attention: share of heads and inputs whose first token has alpha > 0.3 (Gu et al. 2410.10781)",
        ),
        "sink_head": Column(_I, "attention: the head with the strongest key that at least 8 queries can see"),
        "sink_position": Column(_I, "attention: position of that key"),
        "sink_share": Column(_F, "attention: alpha of that key"),
        "sink_logit_mass": Column(
            _F, "attention: mean weight of a learned sink logit, largest of all heads; 0 without one"
        ),
        "value_drain": Column(
            _F, "attention: norm of the first token's value / mean norm of the others', in `head`"
        ),
        "least_drain": Column(
            _F, "attention: smallest such ratio of the heads with first_share > 0.3; null without one"
        ),
        "logit_max": Column(_F, "attention: largest |logit| of all heads"),
        "logit_std": Column(_F, "attention: standard deviation of visible logits, mean over heads"),
        "row_ratio": Column(_F, "weight: largest max|w| / mean|w| of a row"),
        "column_ratio": Column(_F, "weight: largest max|w| / mean|w| of a column"),
        "weight_ratio": Column(
            _F, "weight: larger of row_ratio and column_ratio (An et al. 2502.06415, down projections)"
        ),
        "top_index": Column(
            pa.list_(_I),
            "strongest channels (activation), heads (attention: by first_share), columns (weight: by ratio)",
        ),
        "top_size": Column(
            pa.list_(_F),
            "their size: largest |x| of an input, averaged, / median of it over channels; share; ratio",
        ),
        "num_nonfinite": Column(_L, "NaN and infinite values; left out of all else"),
    },
    "birth_onsets": {
        **_SERIES,
        "kind": Column(_S, "activation, attention or weight"),
        "measure": Column(_S, "column of `births` that is followed, its maximum over layers"),
        "start": Column(_F, "level at the first step measured"),
        "final": Column(_F, "level at the end: median of the last tenth of the steps measured"),
        "peak": Column(_F, "largest level"),
        "peak_step": Column(_L, "step of it"),
        "threshold": Column(
            _F,
            "half of the rise: start + (final - start) / 2; final / 2 where the series begins with outliers",
        ),
        "onset": Column(_L, "first step at which the threshold is passed and held; null when none was born"),
        "before": Column(
            _L,
            "last step measured before it: the onset lies between; null at the first step: it may lie earlier",
        ),
    },
    "birth_order": {
        "first": Column(_S, "one kind"),
        "second": Column(_S, "another kind"),
        "difference": Column(_F, "mean over series of onset(second) - onset(first), steps"),
        "ci_low": Column(_F, "lower end of the 95 % bootstrap interval over series; null below two"),
        "ci_high": Column(_F, "upper end of it"),
        "num_series": Column(_L, "series in which both kinds were born"),
        "num_first": Column(_L, "series in which `first` came first"),
        "num_tied": Column(_L, "series in which both came between the same two measurements"),
        "verdict": Column(_S, "which comes first, or undecided"),
    },
    "birth_channels": {
        **_SERIES,
        **_PLACE,
        "channel": Column(_I, "channel, column or head"),
        "since": Column(_L, "step from which on it is among the strongest without a gap, to the end"),
        "first": Column(_L, "first step at which it was among the strongest"),
        "share": Column(_F, "share of the steps measured at which it was among the strongest"),
        "size": Column(_F, "its size at the last step, as top_size in `births`"),
    },
}
