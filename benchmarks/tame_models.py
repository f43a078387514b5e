"""Random models with planted systematic channels, saved once; every side of a comparison loads the same files.

No real weights are needed to compare procedures: time and memory depend on shapes, errors on where the outliers are. Norm gains and biases are
random, so that nothing holds by accident.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Changes whenever a saved model would be another.
VERSION = 2
_BASE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_OWN = ("vocab_size", "max_position_embeddings", "tie_word_embeddings")
_NO_GROUPS = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}
_SHORT = {k: _BASE[k] for k in _OWN}
_HEADS = {"head_dim": 32}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

# Model class -> configuration class and configuration: the architectures that post-training tools are asked for most.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", _BASE),
    "MistralForCausalLM": ("MistralConfig", _BASE),
    "Qwen2ForCausalLM": ("Qwen2Config", _BASE),
    "Qwen3ForCausalLM": ("Qwen3Config", _BASE | _HEADS),
    "Gemma2ForCausalLM": ("Gemma2Config", _BASE | _HEADS | {"query_pre_attn_scalar": 32}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", _BASE | _HEADS | {"query_pre_attn_scalar": 32}),
    "Phi3ForCausalLM": ("Phi3Config", _BASE | {"pad_token_id": 0}),
    "CohereForCausalLM": ("CohereConfig", _BASE),
    "Olmo2ForCausalLM": ("Olmo2Config", _BASE),
    "GraniteForCausalLM": ("GraniteConfig", _BASE),
    "Glm4ForCausalLM": ("Glm4Config", _BASE | _HEADS | {"pad_token_id": 0}),
    "StableLmForCausalLM": ("StableLmConfig", _BASE),
    "Starcoder2ForCausalLM": ("Starcoder2Config", _BASE),
    "OPTForCausalLM": ("OPTConfig", _NO_GROUPS | {"ffn_dim": 512, "word_embed_proj_dim": 256}),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": 512, "n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 512},
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", _NO_GROUPS),
    "FalconForCausalLM": ("FalconConfig", {k: v for k, v in _NO_GROUPS.items() if k != "intermediate_size"}),
    "BloomForCausalLM": ("BloomConfig", _SHORT | {"hidden_size": 256, "n_layer": 4, "n_head": 8}),
    "MixtralForCausalLM": ("MixtralConfig", _BASE | {"num_local_experts": 4}),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", _BASE | _EXPERTS | {"shared_expert_intermediate_size": 128}),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", _BASE | _EXPERTS | _HEADS),
}
# 124.7 M parameters, 476 MiB in float32.
LLAMA_125M: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
# Channels that stand far from zero on one side only: what a shift is for.
ASYMMETRIC = {3: 25.0, 77: -40.0, 141: 30.0}


def cache_folder(given: str | None) -> Path:
    """Where models and the peer's environment are kept between runs."""
    base = Path(given or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "skerry-benchmarks")
    base = base.expanduser()
    base.mkdir(parents=True, exist_ok=True)
    return base


def make(name: str, *, seed: int = 0, **more: Any) -> Any:
    """A model of a family, `llama-125m` (half of its outlier channels one-sided), `llama-125m-centred`, or `layernorm`, in evaluation mode."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    if name.startswith("llama-125m"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_125M | more))
    else:
        family = {"layernorm": "StableLmForCausalLM"}.get(name, name)
        config, settings = FAMILIES[family]
        extra = {"use_qkv_bias": True} if name == "layernorm" else {}
        made = getattr(transformers, config)(**settings | extra | more)
        model = getattr(transformers, family)(made)
    _randomise(model)
    if name == "layernorm":
        _plant_asymmetric(model)
    else:
        _plant(model, one_sided=name == "llama-125m")
    return model.eval()


def _randomise(model: Any) -> None:
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_((0.05 if "bias" in name else 0.2) * torch.randn_like(p))


def _plant(model: Any, *, one_sided: bool = False) -> None:
    """Some channels of the residual stream thirty times as large as the others.

    Args:
        model: The model.
        one_sided: Half of them far to one side of zero for every token, as in trained models (Wei et al. 2023, section 3: a channel of OPT runs from -97 to
            -58); otherwise only one of them is a little off centre.
    """
    import torch

    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        if one_sided:
            weight[:, [3, 77, 411]] *= 30
            for channel, middle in ((40, 1.5), (200, -1.5), (600, 1.0)):
                weight[:, channel] = weight[:, channel] * 5 + middle
            return
        weight[:, [3, 40, 77, *([200, 411, 600] if weight.shape[1] > 600 else [])]] *= 30
        weight[:, 40] += 0.5


def _plant_asymmetric(
    model: Any, norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
) -> None:
    """Biases of the norms before linear maps put some channels far to one side."""
    import torch

    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(norms):
                for channel, value in ASYMMETRIC.items():
                    module.bias[channel] = value


def saved(cache: Path, name: str) -> Path:
    """The folder of a saved model; it is made if it is not there."""
    place = cache / f"{name}-{VERSION}"
    if not (place / "config.json").exists():
        model = make(name)
        part = cache / f"{place.name}.part"
        model.save_pretrained(part)
        part.rename(place)
    return place


def random_ids(vocab: int, samples: int, tokens: int, seed: int) -> Any:
    """Seeded token ids, [sample position]; low ids, where special tokens are, are left out."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, vocab - 2, (samples, tokens), generator=generator)


def plain_search_model(family: str) -> Any:
    """Two blocks of width 512, with norms that put some channels to one side where they have biases."""
    size = {"hidden_size": 512, "num_hidden_layers": 2}
    if family == "LlamaForCausalLM":
        return make(family, intermediate_size=1376, **size)
    model = make(family, ffn_dim=1376, word_embed_proj_dim=512, **size)
    _plant_asymmetric(
        model, ("self_attn_layer_norm", "layers.0.final_layer_norm", "layers.1.final_layer_norm")
    )
    return model
