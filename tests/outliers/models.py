"""Small random models of five families, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch

from skerry.corpus.batch import Batch

VOCABULARY = 120
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON = {
    **_IDS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _config(family: str, width: int) -> Any:
    import transformers as t

    wide = {**_COMMON, "hidden_size": width, "intermediate_size": 2 * width}
    return {
        "llama": lambda: t.LlamaConfig(**wide, num_key_value_heads=2),
        "gpt2": lambda: t.GPT2Config(
            **_IDS, vocab_size=VOCABULARY, n_embd=width, n_layer=2, n_head=4, n_positions=64
        ),
        "opt": lambda: t.OPTConfig(
            **_COMMON, hidden_size=width, ffn_dim=2 * width, word_embed_proj_dim=width
        ),
        "bert": lambda: t.BertConfig(**wide, type_vocab_size=2),
        "gpt_neox": lambda: t.GPTNeoXConfig(**wide),
    }[family]()


_CLASSES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "bert": "BertForMaskedLM", "gpt_neox": "GPTNeoXForCausalLM"}  # fmt: skip
FAMILIES = list(_CLASSES)


def random_model(family: str, *, width: int = 32, seed: int = 0, lively: bool = True) -> Any:
    """A model in float64; `lively` has gains away from 1, biases away from 0 and weights large enough that every part matters."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, _CLASSES[family])(_config(family, width)).eval().double()
        if lively:
            _enliven(model)
    return model


@torch.no_grad()
def _enliven(model: Any) -> None:
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        if p.dim() > 1:
            p.copy_(
                noise * (0.5 if "embed" in name or "wte" in name or "wpe" in name else p.shape[-1] ** -0.5)
            )
        else:
            p.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise)


def random_batches(
    *, num_samples: int = 16, length: int = 40, seed: int = 0, first: int | None = None, size: int = 8
) -> list[Batch]:
    """Random tokens without padding; `first` begins every input with that token."""
    ids = torch.randint(3, VOCABULARY, (num_samples, length), generator=torch.Generator().manual_seed(seed))
    if first is not None:
        ids[:, 0] = first
    numbers = torch.arange(num_samples)
    cuts = range(0, num_samples, size)
    return [
        Batch(ids[i : i + size], torch.ones_like(ids[i : i + size], dtype=torch.bool), numbers[i : i + size])
        for i in cuts
    ]
