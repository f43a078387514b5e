"""StarCoder 2: LLaMA with LayerNorm and a plain feed-forward."""

from skerry.anatomy.families._common import LLAMA_LIKE, plain_mlp
from skerry.anatomy.family import BiasFormat

_MLP, _MLP_WEIGHTS = plain_mlp("mlp.c_fc", "mlp.c_proj")

FAMILY = LLAMA_LIKE.but(
    name="starcoder2",
    model_types=frozenset({"starcoder2"}),
    activations={**_MLP, "mlp.gate": None},
    weights={**_MLP_WEIGHTS, "w.gate": None},
    biases=BiasFormat({"use_bias": True}),
)
