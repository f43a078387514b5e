"""Training speed: tokens/s of ours / tokens/s of transformers' LLaMA of the same size in a plain loop written by hand; ratios in one run.

    python benchmarks/train.py [--sizes small pebble] [--compile no yes] [--variants all|NAME ...] [--rounds N] [--steps K] [--json]

Both sides: the same windows, bfloat16 autocast where the machine multiplies it, AdamW, clipping, the loss read every step. A round times K
steps of each side in turn, in changing order; the median over rounds counts, with the smallest and the largest round beside it. The variants
that fit a fused kernel are held against our softmax, the same way.

The share of the matrix rate: 6 x parameters x tokens (weights read twice as often backward as forward) + attention, over the rate of one
bfloat16 product of the feed-forward's shape, measured in the same rounds. Bars: softmax >= 1.0 of LLaMA, fused variants >= 0.9 of softmax.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

SOFTMAX_BAR, VARIANT_BAR = 1.0, 0.9


def recipes() -> dict[str, Any]:
    """Sizes by name."""
    from skerry.redesign.recipe import Recipe

    pebble = Recipe(vocabulary=1024, context=128, layers=6, width=256, heads=8, batch=8, weight_decay=0.1)
    return {
        "tiny": replace(pebble, layers=2, width=64, heads=4),
        "small": replace(pebble, layers=4, width=192, heads=6, batch=16),
        "pebble": pebble,
        "wide": replace(pebble, layers=4, width=512, heads=8, context=256),
    }


class Plain:
    """The loop by hand around transformers' LLaMA."""

    def __init__(self, recipe: Any, data: Any, *, bf16: bool) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=data.vocab_size,
                hidden_size=recipe.width,
                intermediate_size=-(-recipe.width * 8 // 48) * 16,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                num_key_value_heads=recipe.heads,
                max_position_embeddings=recipe.context,
                tie_word_embeddings=True,
            )
        ).train()
        self.run: Any = torch.compile(self.model) if recipe.compile else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self.data, self.bf16, self.step = data, bf16, 0

    def seconds(self, steps: int) -> None:
        """Take so many steps."""
        import torch

        for _ in range(steps):
            ids = self.data.batch(self.step)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = self.run(input_ids=ids, labels=ids).loss
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            loss.item()
            self.step += 1


class Product:
    """One matrix product of the feed-forward's shape, in the precision of the training."""

    def __init__(self, recipe: Any, *, bf16: bool) -> None:
        import torch

        inner = -(-recipe.width * 8 // 48) * 16
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.a = torch.randn(recipe.batch * recipe.context, recipe.width, dtype=dtype)
        self.b = torch.randn(inner, recipe.width, dtype=dtype)
        self.flops = 2 * self.a.numel() * inner

    def rate(self, seconds: float = 0.2) -> float:
        """Operations per second."""
        import torch

        start, count = clock(), 0
        while (took := clock() - start) < seconds:
            torch.nn.functional.linear(self.a, self.b)
            count += 1
        return count * self.flops / took


def flops_per_step(recipe: Any, parameters: int) -> float:
    """Products of a step: forward and backward through all matrices, the embedding's look-up left out (tied: it is the head), and attention."""
    tokens = recipe.batch * recipe.context
    attention = 3 * 2 * 2 * recipe.layers * tokens * recipe.context * recipe.width / 2
    return 6.0 * parameters * tokens + attention


def clock() -> float:
    """Processor time of this process where it has one thread, so that what else the machine does matters less; else the time on the wall."""
    import torch

    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(side: Any, steps: int) -> Callable[[], float]:
    """Time of so many steps of a side."""

    def run() -> float:
        start = clock()
        side.seconds(steps)
        return clock() - start

    return run


def in_turn(sides: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Seconds of each side in each round, in changing order."""
    found: list[list[float]] = []
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        times = {i: sides[i]() for i in order}
        found.append([times[i] for i in range(len(sides))])
    return found


def spread(ratios: list[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def versus_llama(recipe: Any, data: Any, *, rounds: int, steps: int) -> dict[str, Any]:
    """Our softmax against LLaMA."""
    from skerry.redesign.train_speed import Stepper

    ours = Stepper(recipe, data, "cpu")
    plain = Plain(recipe, data, bf16=ours.session.bf16)
    product = Product(recipe, bf16=ours.session.bf16)
    for side in (ours, plain):
        side.seconds(2)
    rates: list[float] = []

    def matrix() -> float:
        rates.append(product.rate())
        return 0.0

    rows = in_turn([timed(ours, steps), timed(plain, steps), matrix], rounds)
    parameters = sum(p.numel() for p in ours.session.model.parameters())
    work = flops_per_step(recipe, parameters) * steps
    tokens = recipe.batch * recipe.context * steps
    return {
        **spread([p / o for o, p, _ in rows]),
        "parameters": parameters,
        "tokens_per_second": tokens / statistics.median(o for o, _, _ in rows),
        "llama_tokens_per_second": tokens / statistics.median(p for _, p, _ in rows),
        "share_of_matrix_rate": statistics.median(
            work / o / r for (o, _, _), r in zip(rows, rates, strict=True)
        ),
        "bf16": ours.session.bf16,
    }


def versus_softmax(recipe: Any, data: Any, name: str, *, rounds: int, steps: int) -> dict[str, float]:
    """A variant against our softmax."""
    from skerry.redesign.train_speed import Stepper

    base, other = Stepper(recipe, data, "cpu"), Stepper(replace(recipe, attention=name), data, "cpu")
    for side in (base, other):
        side.seconds(2)
    rows = in_turn([timed(base, steps), timed(other, steps)], rounds)
    return spread([b / o for b, o in rows])


def main() -> None:
    """Measure and print."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--sizes", nargs="+", default=["small", "pebble"])
    ask.add_argument("--compile", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    ask.add_argument("--variants", nargs="*", default=[])
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--steps", type=int, default=3)
    ask.add_argument("--json", action="store_true")
    given = ask.parse_args()
    import torch

    from skerry.redesign.train_data import load_data
    from skerry.redesign.variants import variants

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    names = (
        [n for n, v in variants().items() if v.is_fused and n != "softmax"]
        if "all" in given.variants
        else given.variants
    )
    found: list[dict[str, Any]] = []
    if not given.json:
        print(f"load average {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    for size in given.sizes:
        data = load_data(recipes()[size], None)
        for compiled in given.compile:
            recipe = replace(recipes()[size], compile=compiled == "yes")
            row = versus_llama(recipe, data, rounds=given.rounds, steps=given.steps)
            found.append({"size": size, "compiled": compiled, "what": "softmax / LLaMA", **row})
            _say(found[-1], SOFTMAX_BAR, given.json)
            for name in names:
                row = versus_softmax(recipe, data, name, rounds=given.rounds, steps=given.steps)
                found.append({"size": size, "compiled": compiled, "what": f"{name} / softmax", **row})
                _say(found[-1], VARIANT_BAR, given.json)
    if given.json:
        print(json.dumps(found, indent=1))


def _say(row: dict[str, Any], bar: float, silent: bool) -> None:
    if silent:
        return
    more = ""
    if "share_of_matrix_rate" in row:
        more = f"; {row['tokens_per_second']:,.0f} tokens/s, {row['share_of_matrix_rate']:.0%} of the matrix rate"
    print(
        f"{row['size']}, compiled: {row['compiled']}: {row['what']} {row['ratio']:.2f} "
        f"({row['low']:.2f} to {row['high']:.2f}; bar {bar}){more}",
        flush=True,
    )


if __name__ == "__main__":
    main()
