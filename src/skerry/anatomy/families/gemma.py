"""Gemma 1: LLaMA whose norms multiply by (1 + weight) and whose embedding is multiplied by sqrt(width)."""

from skerry.anatomy.families._common import LLAMA_LIKE, norm

FAMILY = LLAMA_LIKE.but(
    name="gemma",
    model_types=frozenset({"gemma"}),
    weights={
        **norm("norm.attn", "input_layernorm", plus=1.0),
        **norm("norm.mlp", "post_attention_layernorm", plus=1.0),
    },
    outer=norm("norm.final", "/norm", plus=1.0),
)
