"""The rules of the literature by name, each with its thresholds and its source, and our own.

A finding says which rules it meets; the chosen one decides what is listed. A rule that needs more than the streamed statistics say
is evaluated as `approximation` tells; there a count is an estimate. Two rules that share a word need not share a finding: in LLaMA-2
the channels of `llm-int8` and those of `massive` do not overlap at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skerry.errors import UnknownPreset, near_matches


@dataclass(frozen=True)
class Preset:
    """One rule.

    Attributes:
        name: As on the command line and in findings.
        rule: The rule in words, with its numbers.
        source: Where it is published.
        tables: Tables of a run that it reads.
        limits: Its thresholds by name.
        approximation: How it differs from the published rule; empty when it does not.
    """

    name: str
    rule: str
    source: str
    tables: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    approximation: str = ""


DEFAULT = "skerry"
EVERYTHING = "all"

_ALL = (
    Preset(
        "skerry",
        "stands out of its own site by robust score and ratio, and recurs in at least half of the independent inputs, more than chance "
        "at a false discovery rate of 1 %",
        "this project; docs/detectors.md",
        ("sites", "channels", "positions", "tokens", "values", "keys", "key_tokens", "heads", "matrices", "lines", "entries"),
        {"q": 0.01, "recurrence": 0.5},
    ),
    Preset(
        "llm-int8",
        "feature of the inputs of attention and feed-forward with |x| >= 6 in at least 6 % of the tokens, in at least 25 % of the layers",
        "Dettmers et al. 2022 (arXiv 2208.07339), section 4",
        ("sites", "channels"),
        {"magnitude": 6.0, "tokens": 0.06, "layers": 0.25},
        "the share of tokens is that of a Gaussian with the channel's mean and standard deviation, where its largest |x| reaches 6",
    ),
    Preset(
        "massive",
        "element of a block's output with |x| > 100 and |x| >= 1000 x the median |x|",
        "Sun et al. 2024 (arXiv 2402.17762), section 2",
        ("sites", "values"),
        {"magnitude": 100.0, "ratio": 1000.0},
        "the median is that of the site over all inputs; the 32 largest values of a site are looked at",
    ),
    Preset(
        "owen",
        "block output whose largest |x|, averaged over inputs, exceeds 100 and 1000 x the median |x|",
        "Owen et al. 2025 (arXiv 2503.22329)",
        ("sites", "values"),
        {"magnitude": 100.0, "ratio": 1000.0},
        "the median is that of the site over all inputs",
    ),
    Preset(
        "an",
        "token whose largest |x| in a block's output exceeds 1000 x the mean |x|; column of a down projection whose largest |w| exceeds "
        "200 x its mean |w|; key that receives at least 0.1 T of the attention of T queries, mean over heads",
        "An et al. 2025 (arXiv 2502.06415) and its code; the code plots columns without a threshold: 200 separates the modules of its figure",
        ("sites", "channels", "values", "matrices", "lines", "keys"),
        {"ratio": 1000.0, "column": 200.0, "received": 0.1},
        "mean |x| is estimated from the channels' means and standard deviations, exact for Gaussian channels and too large for heavy tails; "
        "received attention is averaged over inputs",
    ),
    Preset(
        "prefixquant",
        "token whose largest |x| at the input of a down projection exceeds 64 x the median of that over the tokens",
        "Chen et al. 2024 (PrefixQuant, arXiv 2410.05265), eta = 64",
        ("positions", "tokens", "values"),
        {"eta": 64.0},
        "the channel is that of the site's 32 largest values; a token that they do not hold is not listed",
    ),
    Preset(
        "super-weight",
        "entry of a down projection at the crossing of the largest input (column) and the largest output (row) of its block at one token, "
        "both beyond 50",
        "Yu et al. 2024 (arXiv 2411.07191) and its code",
        ("values", "entries"),
        {"magnitude": 50.0},
        "found without removing the entry and reading again, so only the first of a block; the weight is output / input when it is not "
        "among the matrix's 64 largest",
    ),
    Preset(
        "sink-gu",
        "key position k of a head with alpha_k > 0.3, alpha_k the mean attention of the queries that see it",
        "Gu et al. 2024 (arXiv 2410.10781), eps = 0.3",
        ("keys",),
        {"alpha": 0.3},
        "on the run's own inputs and length, not on 64 tokens; positions that fewer than 8 queries see are passed over",
    ),
    Preset(
        "sink-an",
        "key that receives at least 0.1 T of the attention of T queries, mean over heads",
        "An et al. 2025 (arXiv 2502.06415), attention rule",
        ("keys",),
        {"received": 0.1},
        "T is the mean length of the inputs; received attention is averaged over inputs; listed at the head that gives most",
    ),
    Preset(
        "fesser",
        "sink whose value vector is shorter than 0.2 x the mean of the others: attending there does nothing",
        "Fesser et al. (NOP sinks)",
        ("keys",),
        {"ratio": 0.2},
        "norms are averaged over inputs; sinks are those of `skerry`",
    ),
    Preset(
        "kovaleva",
        "channel of a norm whose gain and bias both lie more than 3 standard deviations from the mean, in at least half of the layers",
        "Kovaleva et al. 2021 (arXiv 2105.06990)",
        ("lines",),
        {"sigma": 3.0, "layers": 0.5},
    ),
    Preset(
        "mamba-ptq",
        "channel of an input of a linear layer whose largest |x| exceeds the mean of that over channels by 6 standard deviations",
        "Pierro and Abreu 2024 (Mamba-PTQ, arXiv 2407.12397)",
        ("channels",),
        {"sigma": 6.0},
    ),
    Preset("all", "everything that meets any of these rules", "this project", ()),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def check_preset(name: str) -> str:
    """The name of a preset.

    Raises:
        UnknownPreset: There is none of that name.
    """
    if name not in PRESETS:
        near = near_matches(name, list(PRESETS))
        raise UnknownPreset(
            f"there is no preset {name!r}{f'; did you mean {near}?' if near else '.'} `skerry presets` explains all {len(PRESETS)}"
        )
    return name


def limit(preset: str, name: str) -> float:
    """One threshold of a rule."""
    return PRESETS[preset].limits[name]


def listed(met: tuple[str, ...], chosen: str) -> bool:
    """Whether a finding that meets these rules is listed under the chosen one."""
    return bool(met) if chosen == EVERYTHING else chosen in met
