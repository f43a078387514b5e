"""GPT-J: attention and a plain feed-forward read the same norm, side by side."""

from skerry.anatomy.families._common import BLOCK, norm, plain_mlp, separate_attention
from skerry.anatomy.family import Family, Matrix

_ATTENTION, _ATTENTION_WEIGHTS = separate_attention("attn", "q_proj", "k_proj", "v_proj", "out_proj")
_MLP, _MLP_WEIGHTS = plain_mlp("mlp.fc_in", "mlp.fc_out")

FAMILY = Family(
    name="gptj",
    model_types=frozenset({"gptj"}),
    blocks="h",
    activations={**BLOCK, **_ATTENTION, **_MLP},
    weights={**_ATTENTION_WEIGHTS, **_MLP_WEIGHTS, **norm("norm.attn", "ln_1")},
    outer={
        "w.embed": Matrix("/wte.weight"),
        "w.head": Matrix("//lm_head.weight"),
        **norm("norm.final", "/ln_f"),
    },
    head_in="ln_f",
    attention="attn",
)
