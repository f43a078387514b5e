"""Gemma 2: norms before and after both attention and feed-forward.

`post_attention_layernorm` lies between attention and the residual here; in LLaMA the same name stands before the feed-forward.
"""

from skerry.anatomy.families._common import LLAMA_LIKE, norm
from skerry.anatomy.family import Input, Output

FAMILY = LLAMA_LIKE.but(
    name="gemma2",
    model_types=frozenset({"gemma2"}),
    activations={
        "attn.add": Output("post_attention_layernorm"),
        "resid.mid": Input("pre_feedforward_layernorm"),
        "mlp.add": Output("post_feedforward_layernorm"),
    },
    weights={
        **norm("norm.attn", "input_layernorm", plus=1.0),
        **norm("norm.attn.add", "post_attention_layernorm", plus=1.0),
        **norm("norm.mlp", "pre_feedforward_layernorm", plus=1.0),
        **norm("norm.mlp.add", "post_feedforward_layernorm", plus=1.0),
    },
    outer=norm("norm.final", "/norm", plus=1.0),
)
