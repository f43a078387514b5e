"""MPNet: BERT with other names and learned distance biases in the logits, shared by all layers."""

from skerry.anatomy.families._common import norm, separate_attention
from skerry.anatomy.families.bert import FAMILY as BERT
from skerry.anatomy.family import Matrix, Output

_ATTENTION, _ATTENTION_WEIGHTS = separate_attention("attention.attn", "q", "k", "v", "o")

FAMILY = BERT.but(
    name="mpnet",
    model_types=frozenset({"mpnet"}),
    activations={**_ATTENTION, "resid.mid": Output("attention.LayerNorm")},
    weights={**_ATTENTION_WEIGHTS, **norm("norm.attn.resid", "attention.LayerNorm")},
    outer={
        "w.position.relative": Matrix("/encoder.relative_attention_bias.weight"),
        "w.head": Matrix("//lm_head.decoder.weight"),
    },
    attention="attention.attn",
)
