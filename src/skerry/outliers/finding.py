"""The answer as data: findings, profiles and the one summary that terminal, JSON, report and notebook show."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

Kind = Literal["activation", "weight", "attention"]
FindingType = Literal[
    "outlier channel",
    "massive activation",
    "outlier row",
    "outlier column",
    "super weight",
    "sink position",
    "sink token",
    "extreme logits",
    "small sink value",
]


class Record(BaseModel):
    """Base of all rows: frozen, no unknown fields, every field explained by the docstring under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_nan(cls, values: Any) -> Any:
        """JSON has no NaN: a number that has no value is null there and NaN here."""
        if not isinstance(values, dict):
            return values
        numbers = {name for name, field in cls.model_fields.items() if field.annotation is float}
        return {
            name: math.nan if value is None and name in numbers else value for name, value in values.items()
        }


class Finding(Record):
    """One systematic outlier. Fields that do not apply are None."""

    kind: Kind
    """Where it was measured: activation, weight or attention."""
    type: FindingType
    """What it is within its kind."""
    site: str
    """Part of the vocabulary, e.g. `mlp.down.in`."""
    layer: int | None = None
    """Block number from 0; None outside the blocks."""
    expert: int | None = None
    """Number of the expert, in mixture-of-experts blocks."""
    channel: int | None = None
    """Channel of an activation."""
    row: int | None = None
    """Row (output) of a weight."""
    column: int | None = None
    """Column (input) of a weight."""
    head: int | None = None
    """Query head."""
    position: int | None = None
    """Position in the input, where the outlier is bound to one."""
    token: str | None = None
    """Token, where the outlier is bound to one."""
    token_id: int | None = None
    """Id of that token."""
    value: float
    """Signed magnitude in the units of the tensor: the value of largest absolute size; for a sink the share of attention (0 to 1)."""
    ratio: float
    """Against what is normal there: |value| / median |x| of the site (activation), / median |w| of the matrix (weight), share of
    attention / share under uniform attention (sink), norm / mean norm of the other values (small sink value)."""
    score: float
    """Robust z of the log magnitude among its peers (channels, lines, heads): how far it stands out of its own site."""
    recurrence: float | None = None
    """Share of independent inputs in which it recurs, 0 to 1; None for weights, which do not depend on an input."""
    p_value: float | None = None
    """Chance of such a recurrence if the site's peers were exchangeable (before correction); None where no test applies."""
    q_value: float | None = None
    """The same after Benjamini-Hochberg correction over all that was tested in this run."""
    range: tuple[float, float] | None = None
    """Smallest and largest value of the channel, row or column."""
    centre: float | None = None
    """(smallest + largest) / 2."""
    presets: tuple[str, ...] = ()
    """Names of the literature's rules that it meets, and `skerry` for our own."""


class SiteProfile(Record):
    """What one activation site looks like as a whole."""

    layer: int | None
    """Block number from 0."""
    site: str
    """Part of the vocabulary."""
    expert: int | None = None
    """Number of the expert."""
    same_as: str | None = None
    """The site that is the very same tensor, if any; numbers are repeated from it."""
    abs_max: float
    """Largest |x|."""
    median: float
    """Median of |x|."""
    max_to_median: float
    """abs_max / median."""
    kurtosis: float
    """Pooled kurtosis of all values; 3 for a Gaussian."""
    kurtosis_channels: float
    """Energy concentration over channels (He et al.): 1 when all channels are equal, the width when one has everything."""
    num_outlier_channels: int
    """Findings of type outlier channel here."""
    num_channels: int
    """Width."""
    range_share_top1: float
    """Share of the tensor's range that disappears without its widest channel, 0 to 1."""
    range_share_top1pct: float
    """The same without the widest 1 % of channels (at least one)."""
    gini: float
    """Gini coefficient of the channels' largest |x|: 0 all equal, towards 1 one has everything."""
    channels_for_99: int
    """How many channels, largest first, hold 99 % of the sum of squares over channels of the largest |x|."""
    shift_gain: float
    """Tensor range / range after every channel is shifted to its own centre: what OS+'s shift would bring; 1 is nothing."""
    asymmetric_channels: int
    """Channels whose |centre| exceeds their half width: they never cross zero."""
    mean_abs_skewness: float
    """Mean |skewness| over channels."""
    sign_consistency: float | None
    """Over outlier channels: mean share of inputs whose extreme value has the usual sign, 0.5 to 1; None without any."""


class ChannelAsymmetry(Record):
    """One off-centre channel: the picture that OS+ motivates its shift with."""

    layer: int | None
    """Block number from 0."""
    site: str
    """Part of the vocabulary."""
    expert: int | None = None
    """Number of the expert."""
    channel: int
    """Channel."""
    min: float
    """Smallest value."""
    max: float
    """Largest value."""
    centre: float
    """(min + max) / 2."""
    half_width: float
    """(max - min) / 2."""
    asymmetry: float
    """|centre| / half_width; above 1 the channel never crosses zero."""


class HeadProfile(Record):
    """One attention head."""

    layer: int
    """Block number from 0."""
    head: int
    """Query head."""
    sink_position: int
    """Key position that receives most: largest alpha over positions that enough queries see."""
    sink_mass: float
    """alpha there: mean weight that a query which can see it gives to it, 0 to 1."""
    sink_rate: float
    """Share of inputs in which alpha there exceeds 0.3 (Gu et al.)."""
    uniform_mass: float
    """What uniform attention would give to that position."""
    entropy: float
    """Mean entropy of a query row, nats."""
    relative_entropy: float
    """entropy / entropy of uniform attention, 0 to 1."""
    logit_max: float
    """Largest visible logit."""
    logit_range: float
    """Largest minus smallest visible logit."""
    sink_logit_mass: float
    """Weight taken by a learned sink logit; 0 without one."""
    value_norm_ratio: float
    """Norm of the value vector at the sink position / mean norm elsewhere; below 0.2 it is a NOP sink (Fesser et al.)."""


class LayerProfile(Record):
    """One block at a glance."""

    layer: int
    """Block number from 0."""
    resid_abs_max: float | None
    """Largest |x| of resid.out."""
    resid_median: float | None
    """Median |x| of resid.out."""
    down_in_abs_max: float | None
    """Largest |x| of mlp.down.in (over experts)."""
    num_activation: int
    """Activation findings in the block."""
    num_weight: int
    """Weight findings in the block."""
    num_attention: int
    """Attention findings in the block."""
    sink_mass: float | None
    """Mean over heads of the weight that the layer's most attended position receives."""
    first_token_mass: float | None
    """Mean over heads of alpha of position 0 (share of attention on the first token)."""
    sink_rate: float | None
    """Mean over heads of the share of inputs in which position 0 has alpha > 0.3 (Gu et al., Sink_1)."""


class Alignment(Record):
    """Whether two kinds of outliers are in the same places."""

    relation: str
    """What is compared, in words."""
    left: tuple[str, ...]
    """Outlier places of the first kind (channel numbers or tokens)."""
    right: tuple[str, ...]
    """Outlier places of the second kind."""
    shared: tuple[str, ...]
    """Places in both."""
    overlap: float | None
    """Jaccard index, 0 to 1; None when both are empty."""
    expected: float | None
    """Jaccard index expected by chance for sets of these sizes."""
    p_value: float | None
    """Chance of at least so many shared places (hypergeometric)."""


class Profiles(Record):
    """All profiles of a run."""

    sites: tuple[SiteProfile, ...] = ()
    """By activation site."""
    layers: tuple[LayerProfile, ...] = ()
    """By block."""
    heads: tuple[HeadProfile, ...] = ()
    """By attention head."""
    asymmetry: tuple[ChannelAsymmetry, ...] = ()
    """The most off-centre wide channels."""
    alignment: tuple[Alignment, ...] = ()
    """Overlaps between kinds."""


class ModelCard(Record):
    """What was measured, in a few facts."""

    name: str
    """As the user gave it."""
    architecture: str
    """Class of the model."""
    family: str
    """Declared family, or `traced` for an unknown architecture."""
    confidence: str
    """How sure the sites are: `declared`, `traced`, or what could not be placed."""
    num_layers: int
    """Blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int | None
    """Query heads per block; None without attention."""
    num_parameters: int
    """Parameters, tied ones once."""
    dtype: str
    """dtype of the forward."""
    device: str
    """Device of the forward."""
    num_samples: int
    """Independent inputs read."""
    num_tokens: int
    """Tokens measured."""
    tokens_per_sample: int
    """Length of an input."""
    bos: str
    """Which token starts each input, and who put it there."""
    corpus: str
    """What was read."""


class Summary(Record):
    """The whole answer; `--json` prints exactly this."""

    schema_version: Literal[1] = 1
    """Version of this document; the JSON key is `schema`."""
    run: str
    """Path of the run directory."""
    model: ModelCard
    """What was measured."""
    findings: tuple[Finding, ...]
    """Strongest first."""
    profiles: Profiles
    """By site, layer and head."""
    warnings: tuple[str, ...] = ()
    """What the reader must know: non-finite values, sites that could not be placed, fallbacks."""
    choices: dict[str, str] = {}
    """What the program decided and why."""
    seconds: dict[str, float] = {}
    """Wall time by stage."""

    def document(self) -> dict[str, Any]:
        """The JSON document: plain types, the key `schema` first."""
        body = _without_nan(self.model_dump(mode="json"))
        return {"schema": body.pop("schema_version"), **body}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return [_without_nan(v) for v in value] if isinstance(value, list) else value
