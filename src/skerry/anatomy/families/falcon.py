"""Falcon: one query_key_value projection in three layouts, and three places for its norms.

The layouts are one: [kv_head, (its queries, key, value), channel], with one kv_head (multi-query), as many as queries (the oldest
models) or a few (new_decoder_architecture). Parallel blocks have one norm or `ln_attn` and `ln_mlp`; sequential ones have
`post_attention_layernorm` between attention and feed-forward.
"""

from dataclasses import replace
from typing import Any

from skerry.anatomy.families._common import BLOCK, fused_attention, norm, plain_mlp
from skerry.anatomy.family import BiasFormat, Family, Input, Matrix
from skerry.anatomy.splits import Dims, grouped_qkv

_ATTENTION, _ATTENTION_WEIGHTS = fused_attention("self_attention", "query_key_value", "dense", grouped_qkv)
_MLP, _MLP_WEIGHTS = plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def _dims(dims: Dims, config: Any) -> Dims:
    if config.new_decoder_architecture:
        return replace(dims, num_kv_heads=config.num_kv_heads)
    return replace(dims, num_kv_heads=1 if config.multi_query else dims.num_heads)


FAMILY = Family(
    name="falcon",
    model_types=frozenset({"falcon"}),
    blocks="h",
    activations={**BLOCK, **_ATTENTION, **_MLP, "resid.mid": Input("post_attention_layernorm")},
    weights={
        **_ATTENTION_WEIGHTS,
        **_MLP_WEIGHTS,
        **norm("norm.attn", "ln_attn", "input_layernorm"),
        **norm("norm.mlp", "ln_mlp", "post_attention_layernorm"),
    },
    outer={
        "w.embed": Matrix("/word_embeddings.weight"),
        "w.head": Matrix("//lm_head.weight"),
        **norm("norm.final", "/ln_f"),
    },
    head_in="ln_f",
    attention="self_attention",
    dims=_dims,
    biases=BiasFormat({"bias": True}),
)
