"""Train a small decoder that grows outliers and a weak attention sink at its first token: about ten minutes on one core.

    python studies/small_decoder.py OUT [--steps 1500] [--layers 3] [--batch 32] [--seed 0]

A rotary decoder with RMSNorm and a gated feed-forward (the layout of LLaMA), 1.5 million parameters, a byte-level BPE
vocabulary of 1,024, windows of 128 tokens of the built-in corpus with a beginning-of-sequence token in front, AdamW at 3e-3 with
warm-up and cosine. OUT receives a checkpoint that `skerry audit OUT` and `transformers` read, and `recipe.json` with what it gave.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skerry.anatomy import Site, capture, resolve
from skerry.corpus import builtin

VOCABULARY, CONTEXT, BOS = 1024, 128, "<s>"


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every input begins with the beginning-of-sequence token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(documents, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=CONTEXT
    )


def make_model(num_layers: int, width: int, num_heads: int) -> LlamaForCausalLM:
    """The feed-forward is 2 2/3 as wide as the stream, rounded up to 16."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 48) * 16,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def windows(ids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random windows with the beginning-of-sequence token in front, [sample position]."""
    starts = torch.randint(0, len(ids) - CONTEXT, (count,), generator=generator)
    body = torch.stack([ids[s : s + CONTEXT - 1] for s in starts.tolist()])
    return torch.cat([torch.zeros(count, 1, dtype=torch.long), body], dim=1)


def rate(step: int, steps: int, final: float, *, peak: float = 3e-3, warmup: int = 100) -> float:
    """Warm-up, then cosine to `final` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))


def train(
    model: LlamaForCausalLM, ids: Tensor, *, steps: int, batch: int, seed: int, decay: float, final: float
) -> float:
    """The mean loss of the last 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay)
    losses: list[float] = []
    start = time.perf_counter()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, final)
        x = windows(ids, batch, generator)
        loss = model(input_ids=x, labels=x, use_cache=False).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            left = (time.perf_counter() - start) / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1} of {steps}: loss {sum(losses[-50:]) / 50:.3f}, {left:.0f} s left",
                flush=True,
            )
    return sum(losses[-50:]) / len(losses[-50:])


def facts(model: LlamaForCausalLM, ids: Tensor) -> dict[str, Any]:
    """What emerged: hidden state max/median, the strongest head's share of attention on the first token, its value norm."""
    model.eval()
    model.set_attn_implementation("eager")
    x = windows(ids, 16, torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(input_ids=x, output_hidden_states=True, output_attentions=True, use_cache=False)
    hidden = [h.abs() for h in out.hidden_states[1:-1]]
    first = torch.stack([a[:, :, 8:, 0].mean((0, 2)) for a in out.attentions])
    layer, head = divmod(int(first.argmax()), first.shape[1])
    anatomy = resolve(model)
    value = capture(anatomy, x, ["attn.v"])[Site(layer, "attn.v")]
    norm = value.reshape(len(x), x.shape[1], first.shape[1], -1)[:, :, head].norm(dim=-1)
    return {
        "max_to_median": max(float(h.max() / h.median()) for h in hidden),
        "first_token_share": float(first.max()),
        "layer_head": [layer, head],
        "value_norm_ratio": float(norm[:, 0].mean() / norm[:, 1:].mean()),
    }


def main() -> None:
    """Train and save."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("out", type=Path)
    ask.add_argument("--steps", type=int, default=1500)
    ask.add_argument("--layers", type=int, default=3)
    ask.add_argument("--width", type=int, default=192)
    ask.add_argument("--heads", type=int, default=6)
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--decay", type=float, default=0.01)
    ask.add_argument("--final", type=float, default=0.1, help="learning rate at the end / at its peak")
    ask.add_argument("--seed", type=int, default=0)
    given = ask.parse_args()
    torch.manual_seed(given.seed)
    documents = list(builtin().documents)
    tokenizer = train_tokenizer(documents)
    ids = torch.tensor(
        tokenizer("\n\n".join(documents), add_special_tokens=False, verbose=False)["input_ids"]
    )
    model = make_model(given.layers, given.width, given.heads)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} tokens of text", flush=True
    )
    loss = train(
        model,
        ids,
        steps=given.steps,
        batch=given.batch,
        seed=given.seed,
        decay=given.decay,
        final=given.final,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    recipe = {**{k: v for k, v in vars(given).items() if k != "out"}, "loss": loss, **facts(model, ids)}
    (given.out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    print(json.dumps(recipe))


if __name__ == "__main__":
    main()
