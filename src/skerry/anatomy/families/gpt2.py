"""GPT-2: one fused projection for q, k, v; weights stored [in, out] (Conv1D)."""

from skerry.anatomy.families._common import BLOCK, norm, plain_mlp
from skerry.anatomy.family import Family, Input, Matrix, Output
from skerry.anatomy.splits import contiguous_qkv

_MLP, _ = plain_mlp("mlp.c_fc", "mlp.c_proj")

FAMILY = Family(
    name="gpt2",
    model_types=frozenset({"gpt2"}),
    blocks="h",
    activations={
        **BLOCK,
        "attn.in": Input("attn.c_attn"),
        "attn.q": Output("attn.c_attn", contiguous_qkv(0)),
        "attn.k": Output("attn.c_attn", contiguous_qkv(1)),
        "attn.v": Output("attn.c_attn", contiguous_qkv(2)),
        "attn.mix": Input("attn.c_proj"),
        "attn.out": Output("attn.c_proj"),
        "resid.mid": Input("ln_2"),
        **_MLP,
    },
    weights={
        "w.q": Matrix("attn.c_attn.weight", contiguous_qkv(0), transposed=True),
        "w.k": Matrix("attn.c_attn.weight", contiguous_qkv(1), transposed=True),
        "w.v": Matrix("attn.c_attn.weight", contiguous_qkv(2), transposed=True),
        "w.o": Matrix("attn.c_proj.weight", transposed=True),
        "w.up": Matrix("mlp.c_fc.weight", transposed=True),
        "w.down": Matrix("mlp.c_proj.weight", transposed=True),
        **norm("norm.attn", "ln_1"),
        **norm("norm.mlp", "ln_2"),
    },
    outer={
        "w.embed": Matrix("/wte.weight"),
        "w.position": Matrix("/wpe.weight"),
        "w.head": Matrix("//lm_head.weight"),
        **norm("norm.final", "/ln_f"),
    },
    head_in="ln_f",
    attention="attn",
)
