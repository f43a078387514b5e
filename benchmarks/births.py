"""What watching outliers be born costs: training with a monitor / training without, ratios in one run.

    python benchmarks/births.py [--sizes tiny small pebble] [--rounds N] [--every N] [--rows N] [--json]

A round is K optimizer steps, then a measurement and K optimizer steps; extra = second - first, so what a measurement leaves behind (cold
caches, memory to be taken again) is charged to it. Overhead at N = median extra / (N x median step). The medians over rounds count, so that a
drifting machine matters less. `needed` is the smallest N at which the overhead is at most 3 %.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

TARGET = 0.03
# layers, width, heads, feed-forward, inputs, tokens per input, optimizer steps per half round
SIZES = {
    "tiny": (1, 64, 1, 172, 32, 64, 20),  # the size of synthetic tasks
    "small": (4, 192, 6, 512, 32, 128, 3),
    "pebble": (6, 256, 8, 688, 32, 128, 2),
}


def decoder(layers: int, width: int, heads: int, inner: int, tokens: int) -> Any:
    """The layout of LLaMA, a vocabulary of 1,024."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=tokens,
            tie_word_embeddings=True,
        )
    ).train()


def measure(size: str, *, rounds: int, every: int | None, rows: int | None) -> dict[str, float]:
    """Seconds of a step and of a measurement, and their ratio."""
    import torch

    from skerry.redesign.births import Births

    layers, width, heads, inner, inputs, tokens, steps = SIZES[size]
    model = decoder(layers, width, heads, inner, tokens)
    births = Births(model, every=every, **({} if rows is None else {"rows": rows}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def train() -> None:
        for _ in range(steps):
            ids = torch.randint(0, 1024, (inputs, tokens), generator=generator)
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    ids = torch.randint(0, 1024, (inputs, tokens), generator=generator)
    train()
    births.measure(0, ids)
    plain, extra, alone = [], [], []
    for number in range(rounds):
        begin = time.perf_counter()
        train()
        middle = time.perf_counter()
        births.measure(number, ids)
        measured = time.perf_counter()
        train()
        end = time.perf_counter()
        plain.append((middle - begin) / steps)
        extra.append((end - middle) - (middle - begin))
        alone.append(measured - middle)
    step, cost = statistics.median(plain), max(statistics.median(extra), statistics.median(alone))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_seconds": step,
        "measure_seconds": statistics.median(alone),
        "extra_seconds": statistics.median(extra),
        "every": births.every.value,
        "overhead": cost / (births.every.value * step),
        "needed": math.ceil(cost / (TARGET * step)),
    }


def main() -> None:
    """Print one line per size."""
    import torch

    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    ask.add_argument("--rounds", type=int, default=15)
    ask.add_argument("--every", type=int)
    ask.add_argument("--rows", type=int)
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--json", action="store_true")
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    found = {
        size: measure(size, rounds=given.rounds, every=given.every, rows=given.rows) for size in given.sizes
    }
    if given.json:
        print(json.dumps(found))
        return
    for size, r in found.items():
        mark = "ok" if r["overhead"] <= TARGET else "TOO MUCH"
        print(
            f"{size:7} {r['parameters'] / 1e6:5.2f} M parameters: a step {1e3 * r['step_seconds']:7.1f} ms, a measurement "
            f"{1e3 * r['measure_seconds']:6.1f} ms (in all {1e3 * r['extra_seconds']:6.1f}); every {r['every']} steps: "
            f"{r['overhead']:.2%} {mark}; 3 % from every {r['needed']}"
        )


if __name__ == "__main__":
    main()
