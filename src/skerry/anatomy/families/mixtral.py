"""Mixtral: the feed-forward is a router over gated experts that are stored in one tensor each."""

from skerry.anatomy.families._common import LLAMA_LIKE
from skerry.anatomy.family import Input, Matrix, Output
from skerry.anatomy.splits import half

EXPERTS_TAPS = {
    "mlp.in": Input("mlp"),
    "mlp.router": Output("mlp.gate"),
    "mlp.gate": None,
    "mlp.up": None,
    "mlp.down.in": None,
    "mlp.out": Output("mlp"),
}
EXPERTS_WEIGHTS = {
    "w.router": Matrix("mlp.gate.weight"),
    "w.gate": Matrix("mlp.experts.gate_up_proj", half(0), experts=True),
    "w.up": Matrix("mlp.experts.gate_up_proj", half(1), experts=True),
    "w.down": Matrix("mlp.experts.down_proj", experts=True),
}

FAMILY = LLAMA_LIKE.but(
    name="mixtral",
    model_types=frozenset({"mixtral"}),
    activations=EXPERTS_TAPS,
    weights=EXPERTS_WEIGHTS,
    experts="mlp.experts",
)
