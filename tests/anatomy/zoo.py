"""One small random model of every family and variant, from its configuration; each in a fraction of a second.

Norm gains and biases, linear biases, embeddings and learned sinks are all random, so that no two tensors are equal by chance.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON: dict[str, Any] = {
    **_IDS,
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_WIDE_HEADS = {**_GROUPED, "head_dim": 16}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_ENCODER = {**_COMMON, "type_vocab_size": 2}
_FALCON = {**_IDS, "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}

# name -> (class name, configuration class name, configuration)
_ZOO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**_IDS, "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt_350m": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {**_IDS, "vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_WIDE_HEADS, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_GROUPED, "use_sliding_window": True, **_SLIDING}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _WIDE_HEADS),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_WIDE_HEADS, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_WIDE_HEADS, **_SLIDING, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 12},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_WIDE_HEADS, **_SLIDING, "query_pre_attn_scalar": 12},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED),
    "phi": ("PhiForCausalLM", "PhiConfig", {**_GROUPED, "qk_layernorm": True}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _COMMON),
    "gpt_neox_sequential": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**_COMMON, "use_parallel_residual": False},
    ),
    "falcon_rw": (
        "FalconForCausalLM",
        "FalconConfig",
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon_7b": ("FalconForCausalLM", "FalconConfig", {**_FALCON, "multi_query": True}),
    "falcon_40b": (
        "FalconForCausalLM",
        "FalconConfig",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_11b": (
        "FalconForCausalLM",
        "FalconConfig",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "gptj": (
        "GPTJForCausalLM",
        "GPTJConfig",
        {
            **_IDS,
            "vocab_size": 96,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "rotary_dim": 4,
            "tie_word_embeddings": False,
        },
    ),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", {**_GROUPED, "clip_qkv": 1.0}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GROUPED),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", {**_GROUPED, **_SLIDING}),
    "cohere": ("CohereForCausalLM", "CohereConfig", {**_GROUPED, "use_qk_norm": True}),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", {**_GROUPED, **_SLIDING}),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {**_GROUPED, "residual_multiplier": 0.22, "embedding_multiplier": 12.0, "attention_multiplier": 0.3},
    ),
    "glm": ("GlmForCausalLM", "GlmConfig", {**_WIDE_HEADS, "attention_bias": True}),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", {**_WIDE_HEADS, "attention_bias": True}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**_GROUPED, "use_qkv_bias": True}),
    "stablelm_12b": (
        "StableLmForCausalLM",
        "StableLmConfig",
        {**_GROUPED, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", {**_GROUPED, "sliding_window": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_GROUPED,
            **_EXPERTS,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
            "shared_expert_intermediate_size": 40,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_WIDE_HEADS, **_EXPERTS, "num_hidden_layers": 3, "mlp_only_layers": [0]},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            **_WIDE_HEADS,
            **_SLIDING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "bert": ("BertForMaskedLM", "BertConfig", _ENCODER),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _ENCODER),
    "xlm_roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", _ENCODER),
    "camembert": ("CamembertForMaskedLM", "CamembertConfig", _ENCODER),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {**_ENCODER, "embedding_size": 16}),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", _COMMON),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {
            "pad_token_id": 0,
            "vocab_size": 96,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 64,
        },
    ),
}

NAMES = list(_ZOO)
DECODERS = [name for name, (kind, _, _) in _ZOO.items() if "MaskedLM" not in kind]
ENCODERS = [name for name in NAMES if name not in DECODERS]
ROUTED = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]


def config_of(name: str, **overrides: Any) -> Any:
    """The configuration of a small model."""
    import transformers

    _, config_class, config = _ZOO[name]
    return getattr(transformers, config_class)(**{**config, **overrides})


def tiny(
    name: str,
    *,
    headless: bool = False,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> nn.Module:
    """A small random model in evaluation mode, the same for the same arguments.

    Args:
        name: One of `NAMES`.
        headless: The family's `AutoModel` class, without a head.
        dtype: Of all parameters.
        attention: Implementation, `eager` or `sdpa`; transformers' own choice by default.
        seed: Of the weights.
        overrides: Changes to the configuration.
    """
    import transformers

    config = config_of(name, **overrides)
    kind = transformers.AutoModel if headless else getattr(transformers, _ZOO[name][0])
    kwargs = {} if attention is None else {"attn_implementation": attention}
    if dtype == torch.float64 and name in ROUTED:
        kwargs["experts_implementation"] = "eager"  # transformers' grouped product has no float64
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config, **kwargs) if headless else kind._from_config(config, **kwargs)
    randomize(model, generator)
    return model.eval().to(dtype)


@torch.no_grad()
def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Weights large enough that every part matters, gains away from 1 (or from 0, where 1 is added), biases away from 0."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() >= 2 and "norm" not in name.lower():
            p.copy_(noise * (0.5 if "embed" in name or "wte" in name else p.shape[-1] ** -0.5))
        elif name.endswith("weight"):  # a norm's gain
            p.copy_(p + 0.3 * noise)
        else:
            p.copy_(0.3 * noise)


def tokens(
    model: nn.Module, *, num_samples: int = 2, length: int = 12, padding: str | None = None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids without the special ones, and which of them are kept: all, or (`left`, `right`) fewer in each sample."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, model.config.vocab_size, (num_samples, length), generator=generator)
    keep = torch.ones(num_samples, length, dtype=torch.bool)
    for b in range(num_samples if padding else 0):
        hidden = slice(length - 2 * b, None) if padding == "right" else slice(0, 2 * b)
        keep[b, hidden] = False
    pad = model.config.pad_token_id
    return ids.masked_fill(~keep, 0 if pad is None else pad), keep


def module_of(name: str) -> Any:
    """transformers' module with the model's classes."""
    import transformers

    return importlib.import_module(getattr(transformers, _ZOO[name][0]).__module__)
