"""Pieces that many declarations share."""

from __future__ import annotations

from skerry.anatomy.family import Family, Input, Matrices, Matrix, Output, Taps


def linear_weights(names: dict[str, str]) -> Matrices:
    """Part to path of a linear layer, as matrices."""
    return {part: Matrix(f"{path}.weight") for part, path in names.items()}


def norm(part: str, path: str, *, bias: bool = False, plus: float = 0.0) -> Matrices:
    """Gain, and bias where there is one, of a norm."""
    gain: dict[str, Matrix] = {part: Matrix(f"{path}.weight", plus=plus)}
    return {**gain, f"{part}.bias": Matrix(f"{path}.bias")} if bias else gain


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
)
"""Separate q, k, v, o; RMSNorm before attention and before a gated feed-forward. Most decoders since 2023 differ from it by little."""
