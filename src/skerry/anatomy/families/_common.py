"""Pieces that many declarations share."""

from __future__ import annotations

from collections.abc import Callable

from skerry.anatomy.family import BiasFormat, Family, Input, Matrices, Matrix, Output, Taps
from skerry.anatomy.sites import NORM_BIAS
from skerry.anatomy.splits import Split, half


def linear_weights(names: dict[str, str]) -> Matrices:
    """Part to path of a linear layer, as matrices."""
    return {part: Matrix(f"{path}.weight") for part, path in names.items()}


def norm(part: str, *paths: str, plus: float = 0.0) -> Matrices:
    """Gain, and bias where there is one, of a norm; of several paths the first that a block has."""
    return {
        part: [Matrix(f"{path}.weight", plus=plus) for path in paths],
        part + NORM_BIAS: [Matrix(f"{path}.bias") for path in paths],
    }


def separate_attention(at: str, q: str, k: str, v: str, o: str) -> tuple[Taps, Matrices]:
    """Attention with four projections under the module `at`."""
    taps: Taps = {
        "attn.in": Input(f"{at}.{q}"),
        "attn.q": Output(f"{at}.{q}"),
        "attn.k": Output(f"{at}.{k}"),
        "attn.v": Output(f"{at}.{v}"),
        "attn.mix": Input(f"{at}.{o}"),
        "attn.out": Output(f"{at}.{o}"),
    }
    return taps, linear_weights(
        {"w.q": f"{at}.{q}", "w.k": f"{at}.{k}", "w.v": f"{at}.{v}", "w.o": f"{at}.{o}"}
    )


def fused_attention(at: str, qkv: str, o: str, split: Callable[[int], Split]) -> tuple[Taps, Matrices]:
    """Attention with q, k and v in one projection; `split(0)` picks the queries, 1 the keys, 2 the values."""
    taps: Taps = {
        "attn.in": Input(f"{at}.{qkv}"),
        "attn.q": Output(f"{at}.{qkv}", split(0)),
        "attn.k": Output(f"{at}.{qkv}", split(1)),
        "attn.v": Output(f"{at}.{qkv}", split(2)),
        "attn.mix": Input(f"{at}.{o}"),
        "attn.out": Output(f"{at}.{o}"),
    }
    return taps, {
        "w.q": Matrix(f"{at}.{qkv}.weight", split(0)),
        "w.k": Matrix(f"{at}.{qkv}.weight", split(1)),
        "w.v": Matrix(f"{at}.{qkv}.weight", split(2)),
        "w.o": Matrix(f"{at}.{o}.weight"),
    }


def gated_mlp(
    at: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[Taps, Matrices]:
    """act(gate) * up, then down."""
    taps: Taps = {
        "mlp.in": Input(f"{at}.{up}"),
        "mlp.gate": Output(f"{at}.{gate}"),
        "mlp.up": Output(f"{at}.{up}"),
        "mlp.down.in": Input(f"{at}.{down}"),
        "mlp.out": Output(f"{at}.{down}"),
    }
    return taps, linear_weights({"w.gate": f"{at}.{gate}", "w.up": f"{at}.{up}", "w.down": f"{at}.{down}"})


def fused_gated_mlp(at: str, gate_up: str = "gate_up_proj", down: str = "down_proj") -> tuple[Taps, Matrices]:
    """act(gate) * up with [gate | up] in one projection, then down."""
    taps: Taps = {
        "mlp.in": Input(f"{at}.{gate_up}"),
        "mlp.gate": Output(f"{at}.{gate_up}", half(0)),
        "mlp.up": Output(f"{at}.{gate_up}", half(1)),
        "mlp.down.in": Input(f"{at}.{down}"),
        "mlp.out": Output(f"{at}.{down}"),
    }
    return taps, {
        "w.gate": Matrix(f"{at}.{gate_up}.weight", half(0)),
        "w.up": Matrix(f"{at}.{gate_up}.weight", half(1)),
        "w.down": Matrix(f"{at}.{down}.weight"),
    }


def plain_mlp(up: str, down: str) -> tuple[Taps, Matrices]:
    """act(up), then down."""
    taps: Taps = {
        "mlp.in": Input(up),
        "mlp.up": Output(up),
        "mlp.down.in": Input(down),
        "mlp.out": Output(down),
    }
    return taps, linear_weights({"w.up": up, "w.down": down})


BLOCK: Taps = {"resid.in": Input(""), "resid.out": Output("")}
_ATTENTION, _ATTENTION_WEIGHTS = separate_attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
_MLP, _MLP_WEIGHTS = gated_mlp("mlp")

LLAMA_LIKE = Family(
    name="llama",
    model_types=frozenset({"llama"}),
    blocks="layers",
    activations={**BLOCK, **_ATTENTION, **_MLP, "resid.mid": Input("post_attention_layernorm")},
    weights={
        **_ATTENTION_WEIGHTS,
        **_MLP_WEIGHTS,
        **norm("norm.attn", "input_layernorm"),
        **norm("norm.mlp", "post_attention_layernorm"),
    },
    outer={
        "w.embed": Matrix("/embed_tokens.weight"),
        "w.head": Matrix("//lm_head.weight"),
        **norm("norm.final", "/norm"),
    },
    head_in="norm",
    attention="self_attn",
    biases=BiasFormat({"attention_bias": True}),
)
"""Separate q, k, v, o; a norm before attention and before a gated feed-forward. Most decoders since 2023 differ from it by little."""

# A block whose feed-forward is a router over experts. The names of dense feed-forwards stay beside them: models mix both kinds of
# block, and each part takes the first name that its block has.
ROUTED_TAPS: Taps = {"mlp.in": Input("mlp"), "mlp.router": Output("mlp.gate"), "mlp.out": Output("mlp")}
ROUTED_WEIGHTS: Matrices = {
    "w.router": Matrix("mlp.gate.weight"),
    "w.gate": [Matrix("mlp.experts.gate_up_proj", half(0), experts=True), Matrix("mlp.gate_proj.weight")],
    "w.up": [Matrix("mlp.experts.gate_up_proj", half(1), experts=True), Matrix("mlp.up_proj.weight")],
    "w.down": [Matrix("mlp.experts.down_proj", experts=True), Matrix("mlp.down_proj.weight")],
}
