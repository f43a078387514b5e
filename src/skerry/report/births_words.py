"""What a watched series says, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import formatting as f

KIND_WORDS = {
    "activation": "max / median of the hidden state",
    "attention": "first token's share, strongest head",
    "weight": "max / mean, down projections",
}
MEASURE_WORDS = {
    ("resid.out", "max_to_median"): "max / median of the hidden state",
    ("resid.out", "abs_max"): "largest |x| of the hidden state",
    ("resid.out", "kurtosis"): "kurtosis, pooled",
    ("resid.out", "kurtosis_channels"): "kurtosis over channels (He et al.)",
    ("resid.out", "kurtosis_oft"): "kurtosis by input (Bondarenko et al.)",
    ("resid.out", "kurtosis_osp"): "excess kurtosis by token (Park et al.)",
    ("mlp.down.in", "max_to_median"): "max / median before the down projection",
    ("mlp.down.in", "abs_max"): "largest |x| before the down projection",
    ("attn.probs", "first_share"): "share on the first token, strongest head",
    ("attn.probs", "sink_rate"): "sink rate, layer with most sinks (Gu et al.)",
    ("attn.probs", "logit_max"): "largest |logit|",
    ("attn.probs", "value_drain"): "|v| of the first token / others, that head",
    ("attn.probs", "least_drain"): "the same, most drained head with a sink",
    ("w.down", "weight_ratio"): "max / mean of a row or column (An et al.)",
}


def value(kind: str, x: float | int | None) -> str:
    """A level as a reader sees it: a share in per cent, a ratio with two digits."""
    return f.percent(x) if kind == "attention" else f.ratio(x)


def born(onset: Mapping[str, Any]) -> str:
    """When: `step 300 (after 200)`, `by step 250` where it was there at the first checkpoint, or that it was not."""
    if onset["onset"] is None:
        return "not born"
    if onset["before"] is None:
        return f"by step {onset['onset']:,}"
    return f"step {onset['onset']:,} (after {onset['before']:,})"


def course_words(series: Mapping[str, Any]) -> str:
    """Who came first in one training."""
    found = sorted((o for o in series["onsets"] if o["before"] is not None), key=lambda o: o["onset"])
    early = [o for o in series["onsets"] if o["onset"] is not None and o["before"] is None]
    never = [o["kind"] for o in series["onsets"] if o["onset"] is None]
    parts = []
    if early:
        kinds = f.listing(o["kind"] for o in early).capitalize()
        parts.append(f"{kinds} outliers were there at the first checkpoint, step {early[0]['onset']:,}.")
    if found:
        groups: dict[int, list[str]] = {}
        for o in found:
            groups.setdefault(o["onset"], []).append(o["kind"])
        told = [f"{f.listing(kinds)} outliers at step {step:,}" for step, kinds in groups.items()]
        words = ", then ".join(told)
        if len(told) == 1:
            words = words.replace(" outliers at", " outliers were born at")
        parts.append(f"First {words}." if len(told) > 1 and not early else f"{words[0].upper()}{words[1:]}.")
    if never:
        parts.append(
            f"{f.listing(never).capitalize()} outliers were not born: their level did not grow by half."
        )
    return " ".join(parts)


def order_words(order: Sequence[Mapping[str, Any]], num_series: int) -> list[str]:
    """Who comes first over several trainings; nothing for one."""
    if num_series < 2:
        return []
    return [_pair(row) for row in order if row["num_series"]]


def _pair(row: Mapping[str, Any]) -> str:
    n, first, second = row["num_series"], row["first"], row["second"]
    apart, low, high, ahead = row["difference"], row["ci_low"], row["ci_high"], row["num_first"]
    if apart < 0:
        first, second, apart = second, first, -apart
        low, high = (None, None) if low is None else (-high, -low)
        ahead = n - row["num_first"] - row["num_tied"]
    interval = "" if low is None else f" [{f.number(low)}, {f.number(high)}]"
    tied = f", tied in {row['num_tied']}" if row["num_tied"] else ""
    said = "; undecided" if row["verdict"] == "undecided" else ""
    if apart == 0:
        return f"{first} and {second}: no difference on average{interval} in {n}{tied}{said}"
    return f"{first} {f.number(apart)} steps before {second}{interval}: first in {ahead} of {n}{tied}{said}"
