"""OLMo 1: LLaMA whose norms have neither gain nor bias."""

from skerry.anatomy.families._common import LLAMA_LIKE

FAMILY = LLAMA_LIKE.but(name="olmo", model_types=frozenset({"olmo"}))
