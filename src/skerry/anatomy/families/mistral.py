"""Mistral: LLaMA with a sliding window, which only the mask knows."""

from skerry.anatomy.families._common import LLAMA_LIKE

FAMILY = LLAMA_LIKE.but(name="mistral", model_types=frozenset({"mistral", "ministral"}))
