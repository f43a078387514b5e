"""Phi 3, 3.5 and 4: LLaMA with q, k, v in one projection and gate, up in another."""

from skerry.anatomy.families._common import LLAMA_LIKE, fused_attention, fused_gated_mlp
from skerry.anatomy.splits import contiguous_qkv

_ATTENTION, _ATTENTION_WEIGHTS = fused_attention("self_attn", "qkv_proj", "o_proj", contiguous_qkv)
_MLP, _MLP_WEIGHTS = fused_gated_mlp("mlp")

FAMILY = LLAMA_LIKE.but(
    name="phi3",
    model_types=frozenset({"phi3"}),
    activations={**_ATTENTION, **_MLP},
    weights={**_ATTENTION_WEIGHTS, **_MLP_WEIGHTS},
    biases=None,
)
