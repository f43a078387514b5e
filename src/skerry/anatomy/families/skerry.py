"""skerry's own decoder (`skerry.redesign.decoder`): LLaMA's names, and what its choices add to them or take away."""

from collections.abc import Mapping
from typing import Any

from skerry.anatomy.families._common import LLAMA_LIKE, norm
from skerry.anatomy.family import Family, Matrix, Output

_ROWS = "the weights of a query do not sum to one, so a shift of the values is not a shift of their mix"
_GATED = "a gate multiplies what the heads give, so a shift of it is not the same for every token"
_ADDED = "a learned vector is added to what the heads give, so a scale of the values is not a scale of that"
_NORMED = "every head is normed behind attention"
_READ = "the gate of the values reads them too"
_SLICES = "the gates read slices of what the norm writes, by weights that are no linear map of it"

_SHIFT, _BOTH = ("shift",), ("scale", "shift")


def _cannot(changes: tuple[str, ...], reason: str) -> Mapping[str, str]:
    return dict.fromkeys(changes, reason)


# What lies between v and o under an attention variant, beyond rows that sum to one.
_VALUE: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(
        ["off-by-one", "key-bias", "relu", "clipped-softmax", "sigmoid", "sigmoid-length", "softpick"],
        _cannot(_SHIFT, _ROWS),
    ),
    **dict.fromkeys(
        [
            "scaled",
            "scaled-1",
            "gate-all",
            "gate-linear",
            "gate-mlp",
            "qwen-gate",
            "qwen-gate-headwise",
        ],
        _cannot(_SHIFT, _GATED),
    ),
    **dict.fromkeys(["value-bias", "context-bias"], _cannot(("scale",), _ADDED)),
    **{name: {"scale": _ADDED, "shift": _ROWS} for name in ("kv-bias", "sink-value")},
    "value-gate": _cannot(_BOTH, _READ),
    "differential": _cannot(_BOTH, _NORMED),
}
_NORM_PARTS = [
    f"norm.{place}{bias}"
    for place in ("attn", "mlp", "final", "attn.add", "mlp.add")
    for bias in ("", ".bias")
]


def _choices(family: Family, config: Any) -> Family:
    cannot = {"v-o": _VALUE.get(config.attention, {})}
    if config.attention in ("gate-linear", "gate-mlp"):
        cannot["norm.attn"] = _cannot(_BOTH, _SLICES)
    if config.norm == "single-rms":  # one gain is no gain per channel
        family = family.but(
            weights={part: None for part in _NORM_PARTS if part in family.weights},
            outer={part: None for part in _NORM_PARTS if part in family.outer},
        )
    if config.norm == "sandwich":
        family = family.but(
            activations={
                "attn.add": Output("post_self_attn_layernorm"),
                "mlp.add": Output("post_mlp_layernorm"),
            },
            weights={
                **norm("norm.attn.add", "post_self_attn_layernorm"),
                **norm("norm.mlp.add", "post_mlp_layernorm"),
            },
        )
    return family.but(cannot=cannot)


FAMILY = LLAMA_LIKE.but(
    name="skerry",
    model_types=frozenset({"skerry"}),
    weights={
        "w.sink": Matrix("self_attn.variant.sinks"),
        "w.attn.gate": Matrix("self_attn.variant.gate.weight"),
        **norm("norm.q", "self_attn.variant.q_norm"),
        **norm("norm.k", "self_attn.variant.k_norm"),
    },
    outer={"w.position": Matrix("/embed_positions.weight")},
    biases=None,
    adapt=_choices,
)
