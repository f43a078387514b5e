"""Gemma 3: Gemma 2 with norms on q and k; a multi-modal model keeps the same text model under `language_model`."""

from typing import Any

from skerry.anatomy.families._common import norm
from skerry.anatomy.families.gemma2 import FAMILY as GEMMA2
from skerry.anatomy.family import Family, Matrix


def _multi_modal(family: Family, config: Any) -> Family:
    if config.model_type == "gemma3_text":
        return family
    return family.but(
        blocks="language_model.layers",
        head_in="language_model.norm",
        outer={
            "w.embed": Matrix("/language_model.embed_tokens.weight"),
            **norm("norm.final", "/language_model.norm", plus=1.0),
        },
    )


FAMILY = GEMMA2.but(
    name="gemma3",
    model_types=frozenset({"gemma3_text", "gemma3"}),
    weights={
        **norm("norm.q", "self_attn.q_norm", plus=1.0),
        **norm("norm.k", "self_attn.k_norm", plus=1.0),
    },
    adapt=_multi_modal,
)
