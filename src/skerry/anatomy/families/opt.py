"""OPT: norms before attention and feed-forward, or (350m, `do_layer_norm_before` false) after them on the residual.

350m also has an embedding narrower than its residual, with a projection on the way in and out.
"""

from typing import Any

from skerry.anatomy.families._common import BLOCK, norm, plain_mlp, separate_attention
from skerry.anatomy.family import BiasFormat, Family, Input, Matrix, Output

_ATTENTION, _ATTENTION_WEIGHTS = separate_attention("self_attn", "q_proj", "k_proj", "v_proj", "out_proj")
_MLP, _MLP_WEIGHTS = plain_mlp("fc1", "fc2")
_BEFORE = {**norm("norm.attn", "self_attn_layer_norm"), **norm("norm.mlp", "final_layer_norm")}
_AFTER = {**norm("norm.attn.resid", "self_attn_layer_norm"), **norm("norm.mlp.resid", "final_layer_norm")}


def _variant(family: Family, config: Any) -> Family:
    if config.word_embed_proj_dim != config.hidden_size:
        family = family.but(head_in="decoder.project_out")
    if config.do_layer_norm_before:
        return family
    return family.but(
        activations={"resid.mid": Output("self_attn_layer_norm")},
        weights={**dict.fromkeys(_BEFORE), **_AFTER},
    )


FAMILY = Family(
    name="opt",
    model_types=frozenset({"opt"}),
    blocks="decoder.layers",
    activations={**BLOCK, **_ATTENTION, **_MLP, "resid.mid": Input("final_layer_norm")},
    weights={**_ATTENTION_WEIGHTS, **_MLP_WEIGHTS, **_BEFORE},
    outer={
        "w.embed": Matrix("/decoder.embed_tokens.weight"),
        "w.embed.project": Matrix("/decoder.project_in.weight"),
        "w.position": Matrix("/decoder.embed_positions.weight"),
        "w.head.project": Matrix("/decoder.project_out.weight"),
        "w.head": Matrix("//lm_head.weight"),
        **norm("norm.final", "/decoder.final_layer_norm"),
    },
    head_in="decoder.final_layer_norm",
    attention="self_attn",
    adapt=_variant,
    biases=BiasFormat({"enable_bias": True}),
)
