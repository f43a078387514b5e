"""GLM-4: LLaMA with gate and up in one projection; GLM-4-0414 adds a norm behind attention and one behind the feed-forward."""

from skerry.anatomy.families._common import LLAMA_LIKE, fused_gated_mlp, norm
from skerry.anatomy.family import Output

_MLP, _MLP_WEIGHTS = fused_gated_mlp("mlp")

FAMILY = LLAMA_LIKE.but(
    name="glm4",
    model_types=frozenset({"glm", "glm4"}),
    activations={
        **_MLP,
        "attn.add": Output("post_self_attn_layernorm"),
        "mlp.add": Output("post_mlp_layernorm"),
    },
    weights={
        **_MLP_WEIGHTS,
        **norm("norm.attn.add", "post_self_attn_layernorm"),
        **norm("norm.mlp.add", "post_mlp_layernorm"),
    },
    biases=None,
)
