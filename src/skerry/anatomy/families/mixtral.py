"""Mixtral: the feed-forward is a router over gated experts that are stored in one tensor each."""

from skerry.anatomy.families._common import LLAMA_LIKE, ROUTED_TAPS, ROUTED_WEIGHTS

FAMILY = LLAMA_LIKE.but(
    name="mixtral",
    model_types=frozenset({"mixtral"}),
    activations=ROUTED_TAPS,
    weights=ROUTED_WEIGHTS,
    experts="mlp.experts",
    biases=None,
)
