"""BERT: post-norm encoder. Each norm writes the residual stream, so attention and feed-forward read the stream itself."""

from skerry.anatomy.families._common import BLOCK, linear_weights, norm, plain_mlp
from skerry.anatomy.family import Family, Input, Matrix, Output

_MLP, _MLP_WEIGHTS = plain_mlp("intermediate.dense", "output.dense")

FAMILY = Family(
    name="bert",
    model_types=frozenset({"bert"}),
    blocks="encoder.layer",
    activations={
        **BLOCK,
        "attn.in": Input("attention.self.query"),
        "attn.q": Output("attention.self.query"),
        "attn.k": Output("attention.self.key"),
        "attn.v": Output("attention.self.value"),
        "attn.mix": Input("attention.output.dense"),
        "attn.out": Output("attention.output.dense"),
        "resid.mid": Output("attention.output.LayerNorm"),
        **_MLP,
    },
    weights={
        **linear_weights(
            {
                "w.q": "attention.self.query",
                "w.k": "attention.self.key",
                "w.v": "attention.self.value",
                "w.o": "attention.output.dense",
            }
        ),
        **_MLP_WEIGHTS,
        **norm("norm.attn.resid", "attention.output.LayerNorm"),
        **norm("norm.mlp.resid", "output.LayerNorm"),
    },
    outer={
        "w.embed": Matrix("/embeddings.word_embeddings.weight"),
        "w.position": Matrix("/embeddings.position_embeddings.weight"),
        "w.type": Matrix("/embeddings.token_type_embeddings.weight"),
        "w.head": Matrix("//cls.predictions.decoder.weight"),
        **norm("norm.embed", "/embeddings.LayerNorm"),
    },
    attention="attention.self",
    shortcuts={"attn": ("attention.output", 1), "mlp": ("output", 1)},
)
