"""Qwen 3: LLaMA with a norm on each head of q and k."""

from skerry.anatomy.families._common import LLAMA_LIKE, norm

QK_NORMS = {**norm("norm.q", "self_attn.q_norm"), **norm("norm.k", "self_attn.k_norm")}

FAMILY = LLAMA_LIKE.but(name="qwen3", model_types=frozenset({"qwen3"}), weights=QK_NORMS)
