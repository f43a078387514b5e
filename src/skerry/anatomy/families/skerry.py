"""skerry's own decoder (`skerry.redesign.decoder`): LLaMA's names, and a learned sink logit in some attention variants."""

from skerry.anatomy.families._common import LLAMA_LIKE
from skerry.anatomy.family import Matrix

FAMILY = LLAMA_LIKE.but(
    name="skerry",
    model_types=frozenset({"skerry"}),
    weights={"w.sink": Matrix("self_attn.variant.sinks")},
).but(biases=None)
