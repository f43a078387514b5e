"""Time of a training step of every attention variant against softmax, in one run.

    python benchmarks/variants.py [NAME ...] [--layers 4] [--width 256] [--heads 8] [--batch 16] [--context 128] [--repeats 7] [--fp32]

A step is a forward with loss and a backward, without an optimiser; bf16 autocast unless --fp32. Variants take turns, and softmax runs beside
each of them in every round, so that a busy machine slows both; the figure is the median over the rounds of the ratio of the two, in
tokens per second (above 1 is faster than softmax).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.variants import variants


def main() -> None:
    parser = argparse.ArgumentParser(description="Step time of attention variants")
    parser.add_argument("names", nargs="*")
    for name, default in (("layers", 4), ("width", 256), ("heads", 8), ("batch", 16), ("context", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--fp32", action="store_true")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(0, asked.vocabulary, (asked.batch, asked.context), device=device)

    def make(attention: str) -> DecoderForCausalLM:
        config = DecoderConfig(
            vocab_size=asked.vocabulary,
            hidden_size=asked.width,
            num_hidden_layers=asked.layers,
            num_attention_heads=asked.heads,
            max_position_embeddings=asked.context,
            attention=attention,
        )
        return DecoderForCausalLM(config).to(device).train()

    def seconds(model: DecoderForCausalLM) -> float:
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=not asked.fp32):
            loss = model(ids, labels=ids).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    plain = make("softmax")
    print(
        f"{asked.layers} layers x {asked.width}, {asked.heads} heads, batch {asked.batch} x {asked.context}, "
        f"{'float32' if asked.fp32 else 'bf16 autocast'}, {device}, {torch.get_num_threads()} threads, {asked.repeats} rounds"
    )
    print(f"{'variant':<22}{'fused':<7}{'parameters':>11}{'speed':>8}{'smallest':>10}{'largest':>9}")
    for name in asked.names or variants():
        model = make(name)
        seconds(plain), seconds(model)
        ratios = [seconds(plain) / seconds(model) for _ in range(asked.repeats)]
        added = model.num_parameters() - plain.num_parameters()
        fused = "yes" if variants()[name].is_fused else "no"
        print(
            f"{name:<22}{fused:<7}{added:>+11,}{statistics.median(ratios):>8.2f}{min(ratios):>10.2f}{max(ratios):>9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
