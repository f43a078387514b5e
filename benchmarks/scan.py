"""What a scan costs beside the forward that it watches: ratios, measured in turn in one run.

    python benchmarks/scan.py [--rounds 5] [--json] [--only minilm|llama]

A ratio is the median over rounds of ours / plain, both timed in the same round, so that a drifting machine does not matter. The plain
forward is the model without its head (a scan does not run the head), sdpa attention, the same batch, the same threads, inference mode.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TARGETS = {"activation": 1.10, "full": 1.35, "peer": None, "weights": 0.60, "memory_mb": 200}


def build(name: str):
    """The model and its batch."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    if name == "minilm":
        from skerry.anatomy.load import encoder_model

        model = transformers.AutoModel.from_pretrained(encoder_model())
        shape = (32, 128)
    else:
        config = transformers.LlamaConfig(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=2048,
            vocab_size=32000,
        )
        model = transformers.LlamaForCausalLM(config)
        shape = (4, 512)
    return model.eval(), torch.randint(1000, 20000, shape)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ratios(name: str, rounds: int, threads: int) -> dict[str, object]:
    import torch
    from peers import attention_statistics, hooks

    from skerry.anatomy import resolve, run
    from skerry.corpus.batch import Batch
    from skerry.measure import Meter

    torch.set_num_threads(threads)
    model, ids = build(name)
    anatomy = resolve(model)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(len(ids)))
    meters = {"activation": Meter(anatomy, attention=False), "full": Meter(anatomy)}
    places = [
        (anatomy.taps[s].module, anatomy.taps[s].tap.side) for s in anatomy.taps if s not in anatomy.same_as
    ]
    places = list({(id(m), side): (m, side) for m, side in places}.values())

    def plain() -> None:
        with torch.inference_mode():
            run(anatomy, ids)

    def peer() -> None:
        with torch.inference_mode(), hooks(places, len(ids)):
            run(anatomy, ids)

    def peer_full() -> None:
        model.set_attn_implementation("eager")
        try:
            with torch.inference_mode(), hooks(places, len(ids)):
                out = anatomy.trunk(ids, output_attentions=True)
            for probs in out.attentions:
                attention_statistics(probs, probs.clamp_min(1e-30).log())
        finally:
            model.set_attn_implementation("sdpa")

    actions = {
        "plain": plain,
        "activation": lambda: meters["activation"].read(batch),
        "full": lambda: meters["full"].read(batch),
        "peer": peer,
        "peer with attention": peer_full,
    }
    compile_seconds = warm_kernels()
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {key: [] for key in actions}
    for _ in range(rounds):
        for key, action in actions.items():
            times[key].append(timed(action))
    result: dict[str, object] = {
        "plain_seconds": statistics.median(times["plain"]),
        "compile_seconds": compile_seconds,
    }
    for key in list(actions)[1:]:
        result[key] = statistics.median(t / p for t, p in zip(times[key], times["plain"], strict=True))
    result["weights"] = weight_bandwidth(anatomy, rounds)
    return result


def warm_kernels() -> float:
    """Seconds that building the kernels took in this process; near 0 when they were cached."""
    from skerry.measure.kernels import prepare

    return prepare().seconds


def weight_bandwidth(anatomy, rounds: int) -> float:
    """Bandwidth of the weight scan / bandwidth of a max-reduction over the same bytes."""
    from skerry.measure import weight_stats

    weights = [anatomy.weight(s) for s in anatomy.weight_sites]

    def ours() -> None:
        for w in weights:
            weight_stats(w)

    def reduction() -> None:
        for w in weights:
            w.max()

    ours(), reduction()
    pairs = [(timed(reduction), timed(ours)) for _ in range(rounds)]
    return statistics.median(r / o for r, o in pairs)


def memory(name: str, samples: int) -> float:
    """Peak resident MB of a process that reads `samples` batches, in a process of its own."""
    code = f"import scan, sys; print(scan.peak({name!r}, {samples}))"
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return float(out.stdout.strip().splitlines()[-1])


def peak(name: str, batches: int) -> float:
    """Peak resident MB while `batches` are scanned (0: while the same forward runs alone), loading left out."""
    import torch

    from skerry.anatomy import resolve, run
    from skerry.corpus.batch import Batch
    from skerry.measure import Meter

    torch.set_num_threads(2)
    model, ids = build(name)
    anatomy = resolve(model)
    with torch.inference_mode():
        run(anatomy, ids)
    forget_peak()
    with torch.inference_mode():
        run(anatomy, ids)
    meter = Meter(anatomy)
    for i in range(batches):
        meter.read(Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(len(ids)) + i * len(ids)))
    return resident_peak()


def forget_peak() -> None:
    """Start the measurement of the peak anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of loading cannot be left out here", file=sys.stderr)


def resident_peak() -> float:
    """Peak resident MB since `forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=["minilm", "llama"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    for name in [options.only] if options.only else ["minilm", "llama"]:
        found[name] = ratios(name, options.rounds, options.threads)
        base, few, many = memory(name, 0), memory(name, 2), memory(name, 8)
        found[name] |= {"memory_mb": few - base, "memory_mb_4x_samples": many - base}
    if options.json:
        print(json.dumps({"load": os.getloadavg(), "threads": options.threads, "models": found}, indent=2))
        return
    print(f"load average {os.getloadavg()[0]:.2f}, {options.threads} threads; ratios to the plain forward")
    for name, row in found.items():
        print(
            f"\n{name}: plain forward {row['plain_seconds']:.3f} s, kernels built in {row['compile_seconds']:.2f} s"
        )
        for key in ("activation", "full", "peer", "peer with attention"):
            target = TARGETS.get(key)
            print(f"  {key:22} {row[key]:6.2f} x" + (f"   (target <= {target:.2f})" if target else ""))
        print(f"  {'weight bandwidth':22} {row['weights']:6.2f}     (of a max-reduction; target >= 0.60)")
        print(f"  {'memory, MB':22} {row['memory_mb']:6.0f}     (beyond forwards; target <= 200)")
        print(f"  {'... 4 x the samples':22} {row['memory_mb_4x_samples']:6.0f}")


if __name__ == "__main__":
    main()
