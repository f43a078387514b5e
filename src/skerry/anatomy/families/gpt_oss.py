"""gpt-oss: a learned sink logit per head takes attention and carries no value; experts with biases, stored [in, out].

Gate and up alternate in one tensor. The expert's product is (up + 1) * gate * sigmoid(alpha * gate), both clamped first.
"""

from skerry.anatomy.families._common import LLAMA_LIKE, ROUTED_TAPS
from skerry.anatomy.family import Matrix, Output
from skerry.anatomy.splits import every_other

FAMILY = LLAMA_LIKE.but(
    name="gpt_oss",
    model_types=frozenset({"gpt_oss"}),
    activations={
        **ROUTED_TAPS,
        "mlp.router": Output("mlp.router"),
        **dict.fromkeys(["mlp.gate", "mlp.up", "mlp.down.in"]),
    },
    weights={
        "w.sink": Matrix("self_attn.sinks"),
        "w.router": Matrix("mlp.router.weight"),
        "w.gate": Matrix("mlp.experts.gate_up_proj", every_other(0), transposed=True, experts=True),
        "w.up": Matrix("mlp.experts.gate_up_proj", every_other(1), transposed=True, experts=True),
        "w.down": Matrix("mlp.experts.down_proj", transposed=True, experts=True),
    },
    experts="mlp.experts",
)
