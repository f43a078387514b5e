"""Mistral: LLaMA with a sliding window, which only the mask knows."""

from skerry.anatomy.families._common import LLAMA_LIKE
from skerry.anatomy.family import BiasFormat

# Its attention has no bias on o; LLaMA's, whose parameters have the same names, has.
FAMILY = LLAMA_LIKE.but(
    name="mistral",
    model_types=frozenset({"mistral", "ministral"}),
    biases=BiasFormat({"attention_bias": True}, becomes="llama"),
)
