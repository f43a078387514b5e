"""GPT-NeoX and Pythia: fused q, k, v per head; attention and feed-forward side by side, each with its own norm.

Without `use_parallel_residual` the feed-forward comes after attention and `post_attention_layernorm` reads the residual between.
"""

from typing import Any

from skerry.anatomy.families._common import BLOCK, fused_attention, norm, plain_mlp
from skerry.anatomy.family import BiasFormat, Family, Input, Matrix
from skerry.anatomy.splits import interleaved_qkv

_ATTENTION, _ATTENTION_WEIGHTS = fused_attention("attention", "query_key_value", "dense", interleaved_qkv)
_MLP, _MLP_WEIGHTS = plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def _sequential(family: Family, config: Any) -> Family:
    if config.use_parallel_residual:
        return family
    return family.but(activations={"resid.mid": Input("post_attention_layernorm")})


FAMILY = Family(
    name="gpt_neox",
    model_types=frozenset({"gpt_neox"}),
    blocks="layers",
    activations={**BLOCK, **_ATTENTION, **_MLP},
    weights={
        **_ATTENTION_WEIGHTS,
        **_MLP_WEIGHTS,
        **norm("norm.attn", "input_layernorm"),
        **norm("norm.mlp", "post_attention_layernorm"),
    },
    outer={
        "w.embed": Matrix("/embed_in.weight"),
        "w.head": [Matrix("//lm_head.weight"), Matrix("//embed_out.weight")],
        **norm("norm.final", "/final_layer_norm"),
    },
    head_in="final_layer_norm",
    attention="attention",
    adapt=_sequential,
    biases=BiasFormat({"attention_bias": True}),
)
