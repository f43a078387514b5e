"""Qwen 1.5 and 2 MoE: routed experts, one gated expert that every token passes, and in some layers a dense feed-forward."""

from skerry.anatomy.families._common import LLAMA_LIKE, ROUTED_TAPS, ROUTED_WEIGHTS
from skerry.anatomy.family import Matrix

FAMILY = LLAMA_LIKE.but(
    name="qwen2_moe",
    model_types=frozenset({"qwen2_moe"}),
    activations=ROUTED_TAPS,
    weights={**ROUTED_WEIGHTS, "w.router.shared": Matrix("mlp.shared_expert_gate.weight")},
    experts="mlp.experts",
    shared_expert="mlp.shared_expert",
    biases=None,
)
