"""Qwen 2 and 2.5: LLaMA with biases on q, k and v."""

from skerry.anatomy.families._common import LLAMA_LIKE

FAMILY = LLAMA_LIKE.but(name="qwen2", model_types=frozenset({"qwen2"}))
