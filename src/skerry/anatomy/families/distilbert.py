"""DistilBERT: BERT with other names and no token types."""

from skerry.anatomy.families._common import BLOCK, norm, plain_mlp, separate_attention
from skerry.anatomy.family import Family, Matrix, Output

_ATTENTION, _ATTENTION_WEIGHTS = separate_attention("attention", "q_lin", "k_lin", "v_lin", "out_lin")
_MLP, _MLP_WEIGHTS = plain_mlp("ffn.lin1", "ffn.lin2")

FAMILY = Family(
    name="distilbert",
    model_types=frozenset({"distilbert"}),
    blocks="transformer.layer",
    activations={**BLOCK, **_ATTENTION, **_MLP, "resid.mid": Output("sa_layer_norm")},
    weights={
        **_ATTENTION_WEIGHTS,
        **_MLP_WEIGHTS,
        **norm("norm.attn.resid", "sa_layer_norm"),
        **norm("norm.mlp.resid", "output_layer_norm"),
    },
    outer={
        "w.embed": Matrix("/embeddings.word_embeddings.weight"),
        "w.position": Matrix("/embeddings.position_embeddings.weight"),
        "w.head": Matrix("//vocab_projector.weight"),
        **norm("norm.embed", "/embeddings.LayerNorm"),
    },
    attention="attention",
)
