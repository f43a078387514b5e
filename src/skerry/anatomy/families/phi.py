"""Phi 1 and 2: attention and a plain feed-forward read the same norm, side by side."""

from skerry.anatomy.families._common import LLAMA_LIKE, norm, plain_mlp, separate_attention

_ATTENTION, _ATTENTION_WEIGHTS = separate_attention("self_attn", "q_proj", "k_proj", "v_proj", "dense")
_MLP, _MLP_WEIGHTS = plain_mlp("mlp.fc1", "mlp.fc2")

FAMILY = LLAMA_LIKE.but(
    name="phi",
    model_types=frozenset({"phi"}),
    activations={**_ATTENTION, **_MLP, "mlp.gate": None, "resid.mid": None},
    weights={
        **_ATTENTION_WEIGHTS,
        **_MLP_WEIGHTS,
        "w.gate": None,
        **norm("norm.q", "self_attn.q_layernorm"),
        **norm("norm.k", "self_attn.k_layernorm"),
        "norm.mlp": None,
        "norm.mlp.bias": None,
    },
    outer=norm("norm.final", "/final_layernorm"),
    head_in="final_layernorm",
    biases=None,
)
