"""BLOOM: fused q, k, v per head, distance biases (alibi) in the logits, a norm on the embedding.

With `apply_residual_connection_post_layernorm` the residual goes on from the output of each norm and not from its input, so that
resid.in + attn.out is not resid.mid there.
"""

from skerry.anatomy.families._common import BLOCK, fused_attention, norm, plain_mlp
from skerry.anatomy.family import Family, Input, Matrix
from skerry.anatomy.splits import interleaved_qkv

_ATTENTION, _ATTENTION_WEIGHTS = fused_attention(
    "self_attention", "query_key_value", "dense", interleaved_qkv
)
_MLP, _MLP_WEIGHTS = plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

FAMILY = Family(
    name="bloom",
    model_types=frozenset({"bloom"}),
    blocks="h",
    activations={**BLOCK, **_ATTENTION, **_MLP, "resid.mid": Input("post_attention_layernorm")},
    weights={
        **_ATTENTION_WEIGHTS,
        **_MLP_WEIGHTS,
        **norm("norm.attn", "input_layernorm"),
        **norm("norm.mlp", "post_attention_layernorm"),
    },
    outer={
        "w.embed": Matrix("/word_embeddings.weight"),
        "w.head": Matrix("//lm_head.weight"),
        **norm("norm.embed", "/word_embeddings_layernorm"),
        **norm("norm.final", "/ln_f"),
    },
    head_in="ln_f",
    attention="self_attention",
)
