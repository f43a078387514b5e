"""Nanoseconds per element of the accumulators, shape by shape: `python benchmarks/_kernel.py [--threads N] [activation|attention|weight]`."""

import argparse
import time

import torch

from skerry.corpus.batch import Batch
from skerry.measure import ActivationStats, AttentionStats, weight_stats
from skerry.measure.kernels import prepare


def best(run, *, repeat):
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def show(what, seconds, numel):
    print(f"{what:60} {seconds * 1e6:9.0f} us  {seconds / numel * 1e9:7.3f} ns/element", flush=True)


def batch_of(num, length):
    keep = torch.ones(num, length, dtype=torch.bool)
    return Batch(torch.randint(0, 1000, (num, length)), keep, torch.arange(num))


def activations(repeat):
    shapes = [(32, 128, 384), (32, 128, 1536), (4, 512, 768), (4, 512, 2048), (1, 512, 11008), (2, 16, 64)]
    for num, length, width in shapes:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for tokens in (False, True):
                x, batch = torch.randn(num * length, width).to(dtype), batch_of(num, length)
                stats = ActivationStats(width, tokens=tokens)
                seconds = best(lambda: stats.update(x, None, batch), repeat=repeat)  # noqa: B023
                show(
                    f"activation {num}x{length}x{width} {dtype} {'with tokens' * tokens}", seconds, x.numel()
                )


class View:
    softcap = sink_logits = mask = logits = None

    def __init__(self, num, heads, kv_heads, length, width, *, is_causal):
        self.num_heads, self.scale, self.is_causal, self.layer = heads, width**-0.5, is_causal, 0
        self.query = torch.randn(num, heads, length, width)
        self.key, self.value = torch.randn(2, num, kv_heads, length, width)


def attentions(repeat):
    for num, heads, kv_heads, length, width, causal in [
        (32, 12, 12, 128, 32, False),
        (4, 12, 12, 512, 64, True),
        (4, 12, 4, 512, 64, True),
        (1, 8, 8, 2048, 64, True),
    ]:
        view = View(num, heads, kv_heads, length, width, is_causal=causal)
        batch = batch_of(num, length)
        stats = AttentionStats(heads, kv_heads, length)
        for name, mask in (("", None), ("masked", torch.ones(num, 1, length, length, dtype=torch.bool))):
            view.mask = mask
            seconds = best(lambda: stats.update(view, batch), repeat=repeat)  # noqa: B023
            text = f"attention {num}x{heads}({kv_heads})x{length}x{width} {'causal' * causal} {name}"
            show(text, seconds, num * heads * length * length)


def weights(repeat):
    for rows, columns in [(384, 1536), (2048, 768), (32000, 768), (4096, 11008)]:
        for dtype in (torch.float32, torch.bfloat16):
            w = torch.randn(rows, columns).to(dtype)
            plain = best(w.max, repeat=repeat)
            for name, view in (("", w), ("transposed", w.T)):
                seconds = best(lambda: weight_stats(view), repeat=repeat)  # noqa: B023
                show(
                    f"weight {rows}x{columns} {dtype} {name}; {plain / seconds:.0%} of max()",
                    seconds,
                    w.numel(),
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["activation", "attention", "weight"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(prepare(), f"{asked.threads} threads")
    for name, run in (("activation", activations), ("attention", attentions), ("weight", weights)):
        if name in asked.what:
            run(asked.repeat)


if __name__ == "__main__":
    main()
