"""The tables of a trace: carriers of outliers, their growth, spread and end, effects of interventions, roles of sinks.

An interval (`low`, `high`) is a percentile bootstrap over independent inputs at 95 %, unless its column says otherwise.
"""

from __future__ import annotations

import pyarrow as pa

from skerry.run.column import Column

_I, _L, _F, _S, _B = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.bool_()
_CARRIER = {"carrier": Column(_I, "number of the outlier in `carriers`")}
_INTERVAL = {
    "low": Column(_F, "lower end of the 95 % interval over inputs; null where none was computed"),
    "high": Column(_F, "upper end of it"),
}
_HEAD = {
    "layer": Column(_I, "block number from 0; null for the whole model"),
    "head": Column(_I, "query head; null for a whole layer or model"),
}

CAUSE_TABLES: dict[str, dict[str, Column]] = {
    "carriers": {
        **_CARRIER,
        "kind": Column(_S, "massive activation (a few tokens) or outlier channel (most tokens)"),
        "channel": Column(_I, "channel of the residual stream"),
        "sign": Column(_I, "1 or -1: the sign it has in most inputs at its peak"),
        "birth_layer": Column(_I, "block after which it is first there; null: the embedding already has it"),
        "peak_layer": Column(_I, "block after which it is largest"),
        "exit_layer": Column(
            _I, "block that takes it away (|value| at most halves, and stays so); null: it stays to the end"
        ),
        "peak": Column(_F, "mean over its tokens of the signed value at resid.out of the peak block"),
        "ratio": Column(_F, "|peak| / median |x| of resid.out of the peak block"),
        "threshold": Column(_F, "|value| at resid.out of the peak block from which a token carries it"),
        "num_tokens": Column(_L, "tokens that carry it"),
        "num_samples": Column(_L, "inputs with such a token"),
        "recurrence": Column(_F, "share of inputs with such a token"),
        "cancellation": Column(
            _F,
            "-(what the exit block writes) / (value it received), mean over tokens: 1 is full; null without exit",
        ),
    },
    "carrier_tokens": {
        **_CARRIER,
        "position": Column(_I, "position in the input; null when counted over positions"),
        "token_id": Column(_L, "token id; null when counted over tokens"),
        "token": Column(_S, "token as text"),
        "count": Column(_L, "tokens there that carry it"),
        "share": Column(_F, "share of the carrier's tokens that are there"),
    },
    "lifecycle": {
        **_CARRIER,
        "layer": Column(_I, "block number from 0"),
        "site": Column(_S, "resid.in (of block 0: the embedding), resid.mid or resid.out"),
        "value": Column(_F, "mean signed value at the tokens that carry it"),
        "low": Column(_F, "0.05 quantile over those tokens"),
        "high": Column(_F, "0.95 quantile over those tokens"),
        "other": Column(_F, "mean |value| of the same channel at other tokens"),
        "norm": Column(_F, "mean Euclidean norm of the tokens that carry it"),
        "norm_other": Column(_F, "mean Euclidean norm of other tokens"),
    },
    "growth": {
        **_CARRIER,
        "event": Column(_S, "birth or exit"),
        "layer": Column(_I, "block where it happens; null: the embedding"),
        "level": Column(
            _S,
            "block (attention, feed-forward, ...: sums to 1), neuron, head or expert: each sums to its part's share",
        ),
        "part": Column(
            _S,
            "attn.out, mlp.out, norm gain, norm bias, centre, unexplained; of an embedding w.embed, w.position, w.type; bias, or rest of a cut list",
        ),
        "expert": Column(_I, "number of the expert; null where there is none"),
        "index": Column(_I, "neuron or head; null for a whole part"),
        "value": Column(_F, "signed contribution to the channel, mean over the carrier's tokens"),
        "share": Column(_F, "value / the whole change of the channel in this block"),
        **_INTERVAL,
    },
    "factors": {
        **_CARRIER,
        "event": Column(_S, "birth or exit"),
        "layer": Column(_I, "block"),
        "expert": Column(_I, "number of the expert"),
        "neuron": Column(_I, "intermediate channel that writes most of it"),
        "factor": Column(_S, "norm (size of mlp.in), gate, act(gate), up, product, weight"),
        "value": Column(_F, "mean signed value at the carrier's tokens"),
        "other": Column(
            _F, "mean absolute value at other tokens; of the weight: mean absolute entry of its matrix"
        ),
        "alignment": Column(
            _F, "mean cosine between mlp.in and the neuron's weight row, at the carrier's tokens"
        ),
        "alignment_other": Column(_F, "root mean square of that cosine at other tokens"),
        "log_share": Column(
            _F, "share of log(product / product of other tokens) that act(gate) and up explain; sums to 1"
        ),
    },
    "growth_weights": {
        **_CARRIER,
        "layer": Column(_I, "block"),
        "expert": Column(_I, "number of the expert"),
        "row": Column(_I, "row of w.down: the residual channel"),
        "column": Column(_I, "column of w.down: the neuron"),
        "value": Column(_F, "the weight"),
        "rank": Column(_I, "0 carries most of the growth"),
        "share": Column(_F, "share of the block's growth that goes through this entry"),
        "cumulative": Column(_F, "share of the growth through this and all before; the list ends at 0.9"),
    },
    "units": {
        **_CARRIER,
        "event": Column(_S, "birth or exit"),
        "layer": Column(_I, "block"),
        "unit": Column(_S, "weight, neuron, expert, head or sublayer"),
        "expert": Column(_I, "number of the expert"),
        "index": Column(_I, "neuron (weights: column), head or expert; null for a sublayer"),
        "part": Column(
            _S, "attn.out or mlp.out; of a sublayer any part that the level block of `growth` has"
        ),
        "count": Column(
            _I, "how many units of this kind, largest first, carry 90 % of the growth; null: not even all do"
        ),
        "share": Column(_F, "share of the growth that the first one carries"),
        "best": Column(_B, "the smallest kind of unit of which one alone carries most: what the trace names"),
    },
    "spread": {
        "layer": Column(_I, "block number from 0"),
        "head": Column(_I, "query head; null for the whole layer"),
        "measure": Column(
            _S,
            "participation ratio, constancy, logit share, attention mass, value norm ratio, reach; docs/trace.md defines them",
        ),
        "value": Column(_F, "at the tokens that carry massive activations"),
        "other": Column(_F, "the same at other tokens; null where it has no meaning"),
        **_INTERVAL,
        "num_samples": Column(_L, "inputs measured"),
    },
    "effects": {
        "group": Column(_S, "birth, super weight, dose, path, start, sink or removal"),
        "arm": Column(_S, "what was done, in a few words"),
        "layer": Column(_I, "block where it was done; null: in many"),
        "site": Column(_S, "part where it was done"),
        "dose": Column(_F, "factor on the outlier, in group dose"),
        "control": Column(_B, "whether the arm is a matched control: its outcomes make the null"),
        "draw": Column(_I, "number of the random draw of a control; null otherwise"),
        "outcome": Column(
            _S,
            "loss or kl (nats per token), distance (of last hidden states), outlier, sink mass, value norm ratio",
        ),
        "outcome_layer": Column(_I, "block where the outcome was read; null for loss, kl and distance"),
        "clean": Column(_F, "mean over inputs without the intervention"),
        "value": Column(_F, "mean over inputs with it"),
        "change": Column(_F, "mean over inputs of with - without"),
        **_INTERVAL,
        "p_value": Column(
            _F, "(1 + controls with |change| as large) / (1 + controls); null for controls or without"
        ),
        "num_samples": Column(_L, "inputs measured"),
    },
    "roles": {
        "level": Column(_S, "head, layer or model"),
        **_HEAD,
        "arm": Column(
            _S,
            "fixed bias, context-aware bias, implicit scaling, both frozen, neither; docs/trace.md says what each replaces",
        ),
        "outcome": Column(_S, "loss, kl or distance"),
        "change": Column(_F, "mean over inputs of with - without"),
        **_INTERVAL,
        "against_both": Column(
            _F, "mean over inputs of this arm - both frozen, paired; negative: costs less"
        ),
        "against_both_low": Column(_F, "lower end of its interval"),
        "against_both_high": Column(_F, "upper end of its interval"),
        "control": Column(_F, "the same for the matched control: the same changes given to other tokens"),
        "control_low": Column(_F, "lower end of its interval"),
        "control_high": Column(_F, "upper end of its interval"),
        "num_samples": Column(_L, "inputs measured"),
    },
    "role_verdicts": {
        "level": Column(_S, "head, layer or model"),
        **_HEAD,
        "verdict": Column(
            _S, "fixed bias, context-aware bias, implicit scaling, mixed, undecided or no role"
        ),
        "outcome": Column(_S, "loss, kl or distance: what decided"),
        "strength": Column(
            _F,
            "share of what the sinks do that this role makes, 0 to 1; null when undecided or without a role",
        ),
        **_INTERVAL,
        "why": Column(_S, "the comparison that decided, in words"),
    },
    "role_measures": {
        **_HEAD,
        "measure": Column(
            _S,
            "sink mass, sink mass std, value norm ratio, update correlation, dormant share, active share, variance share of scale, of bias, "
            "of rest, of interaction, role share of fixed bias, of context dependence, of scaling",
        ),
        "value": Column(_F, "its value"),
        **_INTERVAL,
        "num_samples": Column(_L, "inputs measured"),
    },
}
