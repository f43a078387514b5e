"""Command R: attention and feed-forward read the same norm, side by side."""

from skerry.anatomy.families._common import LLAMA_LIKE, norm

FAMILY = LLAMA_LIKE.but(
    name="cohere",
    model_types=frozenset({"cohere", "cohere2"}),
    activations={"resid.mid": None},
    weights={
        **norm("norm.q", "self_attn.q_norm"),
        **norm("norm.k", "self_attn.k_norm"),
        "norm.mlp": None,
        "norm.mlp.bias": None,
    },
)
