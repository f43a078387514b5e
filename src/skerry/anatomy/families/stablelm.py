"""StableLM 2: LLaMA with LayerNorm, in some sizes with attention and feed-forward side by side and a norm per head."""

from skerry.anatomy.families._common import LLAMA_LIKE, norm

# A parallel block has no post_attention_layernorm: resid.mid and norm.mlp are then absent.
FAMILY = LLAMA_LIKE.but(
    name="stablelm",
    model_types=frozenset({"stablelm"}),
    weights={
        **norm("norm.q", "self_attn.q_layernorm.norms.*"),
        **norm("norm.k", "self_attn.k_layernorm.norms.*"),
    },
    biases=None,
)
