"""Granite: LLaMA with multipliers on the embedding, the logits and what each half of a block adds.

attn.out and mlp.out are what the projections write; the residual receives them times `residual_multiplier`.
"""

from skerry.anatomy.families._common import LLAMA_LIKE

FAMILY = LLAMA_LIKE.but(name="granite", model_types=frozenset({"granite"}))
