"""Qwen 3 MoE: routed experts, norms on q and k, and in some layers a dense feed-forward."""

from skerry.anatomy.families._common import LLAMA_LIKE, ROUTED_TAPS, ROUTED_WEIGHTS
from skerry.anatomy.families.qwen3 import QK_NORMS

FAMILY = LLAMA_LIKE.but(
    name="qwen3_moe",
    model_types=frozenset({"qwen3_moe"}),
    activations=ROUTED_TAPS,
    weights={**ROUTED_WEIGHTS, **QK_NORMS},
    experts="mlp.experts",
)
