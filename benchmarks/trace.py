"""What following outliers costs beside a plain forward over the same text, and what interventions and claims cost: ratios in one run.

    python benchmarks/trace.py [MODEL] [--samples N] [--tokens N] [--json]

`lifecycle with scan` is birth, spread and end together with the scan that they start from, divided by one plain forward (no head) over the
same text. Forwards are timed before and after, and the median counts, so that a drifting machine matters less.

`rerun` is what an intervention at a block costs when the blocks before it return what they returned before: seconds of a run with one
channel of `attn.in` of block b set to zero / seconds of a plain forward of the same batch, for every b, beside (n - b) / n.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from typing import Any

TARGETS = {"lifecycle with scan": 12.0}
STAGES = ("activations", "weights", "findings", "lifecycle", "effects", "roles")


def plain_forward(plan: Any, rounds: int) -> list[float]:
    """Seconds of one forward over the whole text, `rounds` times."""
    import torch

    from skerry.anatomy import run

    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in plan.feed:
                run(plan.anatomy, batch.input_ids, batch.keep)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(model: str | None, options: dict[str, Any], rounds: int) -> dict[str, float]:
    """Seconds of every stage and of a plain forward."""
    from skerry.causes.trace import TraceOptions, trace_stages
    from skerry.outliers.options import Options
    from skerry.outliers.plan import make_plan
    from skerry.outliers.scan import scan
    from skerry.run import Silent

    with tempfile.TemporaryDirectory() as folder:
        asked = Options(out=f"{folder}/run", **options)
        plan = make_plan(model, None, asked)
        forwards = plain_forward(plan, rounds)

        def then(run: Any, found: Any) -> None:
            trace_stages(run, found, TraceOptions(), Silent())

        run = scan(model, None, asked, then=then)
        forwards += plain_forward(plan, rounds)
        seconds = {name: run.record.stages[name].seconds for name in STAGES if name in run.record.stages}
    return {"plain": statistics.median(forwards), **seconds}


def reuse(model: str | None, options: dict[str, Any], rounds: int) -> list[tuple[int, float, float]]:
    """Block, share of a forward that a rerun from there costs, share that would be all of its blocks."""
    import torch

    from skerry.anatomy import run
    from skerry.causes.interventions import zero
    from skerry.causes.rerun import Rerun
    from skerry.outliers.options import Options
    from skerry.outliers.plan import make_plan

    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(model, None, Options(out=f"{folder}/run", **options))
    batch, anatomy = next(iter(plan.feed)), plan.anatomy
    with torch.inference_mode():
        rerun = Rerun(anatomy, batch)
        blocks = range(anatomy.dims.num_layers)
        changes = [zero(anatomy, f"{b}.attn.in", channels=0) for b in blocks]
        plain: list[float] = []
        ours: list[list[float]] = [[] for _ in blocks]
        for _ in range(rounds):
            plain.append(seconds_of(lambda: run(anatomy, batch.input_ids, batch.keep)))
            for b in blocks:
                ours[b].append(seconds_of(lambda b=b: rerun.hidden(changes[b])))
    whole = statistics.median(plain)
    return [(b, statistics.median(ours[b]) / whole, (len(blocks) - b) / len(blocks)) for b in blocks]


def seconds_of(work: Any) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("model", nargs="?")
    ask.add_argument("--samples", type=int)
    ask.add_argument("--tokens", type=int)
    ask.add_argument("--rounds", type=int, default=2)
    ask.add_argument("--json", action="store_true")
    given = ask.parse_args()
    seconds = measure(given.model, {"samples": given.samples, "tokens": given.tokens}, given.rounds)
    plain = seconds.pop("plain")
    ratios = {name: value / plain for name, value in seconds.items()}
    ratios["lifecycle with scan"] = sum(ratios[n] for n in ("activations", "findings", "lifecycle"))
    reruns = reuse(given.model, {"samples": given.samples, "tokens": given.tokens}, 5 * given.rounds)
    if given.json:
        print(json.dumps({"plain_seconds": plain, "seconds": seconds, "ratios": ratios, "reruns": reruns}))
        return
    print(f"load average {os.getloadavg()[0]:.1f}; a plain forward over the text takes {plain:.2f} s")
    for name, ratio in ratios.items():
        target = f"   at most {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:22} {ratio:8.2f} x plain{target}")
    for block, ratio, ideal in reruns:
        print(f"rerun from block {block:<4} {ratio:9.2f} x plain   blocks from there on: {ideal:.2f}")
    print(f"in all {sum(seconds.values()):.0f} s")


if __name__ == "__main__":
    main()
