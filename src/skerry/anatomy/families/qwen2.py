"""Qwen 2 and 2.5: LLaMA with biases on q, k and v."""

from skerry.anatomy.families._common import LLAMA_LIKE
from skerry.anatomy.family import BiasFormat

# Its attention has no bias on o; LLaMA's, whose parameters have the same names, has.
FAMILY = LLAMA_LIKE.but(
    name="qwen2",
    model_types=frozenset({"qwen2"}),
    biases=BiasFormat({"attention_bias": True}, becomes="llama"),
)
