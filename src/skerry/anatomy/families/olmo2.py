"""OLMo 2 and 3: no norm before attention or feed-forward, one behind each of them, and norms over the whole of q and k.

Attention and feed-forward read the residual stream itself.
"""

from skerry.anatomy.families._common import LLAMA_LIKE, norm
from skerry.anatomy.family import Input, Output

FAMILY = LLAMA_LIKE.but(
    name="olmo2",
    model_types=frozenset({"olmo2", "olmo3"}),
    activations={
        "attn.add": Output("post_attention_layernorm"),
        "resid.mid": Input("mlp"),
        "mlp.add": Output("post_feedforward_layernorm"),
    },
    weights={
        **dict.fromkeys(["norm.attn", "norm.attn.bias", "norm.mlp", "norm.mlp.bias"]),
        **norm("norm.q", "self_attn.q_norm"),
        **norm("norm.k", "self_attn.k_norm"),
        **norm("norm.attn.add", "post_attention_layernorm"),
        **norm("norm.mlp.add", "post_feedforward_layernorm"),
    },
)
