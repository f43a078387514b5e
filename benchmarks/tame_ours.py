"""Our side of the comparison with the peer, in a fresh process: time and peak memory of one taming, and the judge of both sides.

    python benchmarks/tame_ours.py pieces|verb|floor|score|growth REQUEST.json

pieces  resolve, check seams, search, prove, fold and verify on a loaded model, each timed
verb    skerry.tame(path, ids, evaluate=False), nothing exported
floor   the same libraries and weights, each weight read once and nothing else done
growth  peak memory of an OS+ search beyond the model, for so many blocks and batches
score   relative logit error of saved checkpoints to the float model on held-out ids, both loaded by transformers
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MARK = "OUR-RESULT "


def run(stage: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A stage in a process of its own."""
    question = folder / "our-request.json"
    question.write_text(json.dumps(request))
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, Path(__file__).resolve(), stage, question],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(request["threads"])},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{stage} failed:\n{done.stderr[-2000:]}")
    return {**json.loads(lines[-1].removeprefix(MARK)), "process": time.perf_counter() - start}


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def batches_of(ids: Any) -> list[Any]:
    """One batch of all inputs; methods cut it as they like."""
    import torch

    from skerry.corpus.batch import Batch

    return [Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(len(ids)))]


def pieces(request: dict[str, Any]) -> dict[str, Any]:
    """One taming, piece by piece."""
    start = time.perf_counter()
    import torch

    from skerry.anatomy.load import load
    from skerry.anatomy.resolve import resolve
    from skerry.impact.scheme import Scheme
    from skerry.tame.pipeline import Setting, find, proof_ids, usable_seams
    from skerry.tame.register import find_method
    from skerry.tame.transform import Transform, outputs, verify

    torch.set_num_threads(request["threads"])
    seconds = {"imports": time.perf_counter() - start}
    start = time.perf_counter()
    model = load(request["model"]).model
    batches = batches_of(torch.tensor(request["ids"]))
    seconds["loading"] = time.perf_counter() - start
    before = peak_mib()
    begin, processor = time.perf_counter(), time.process_time()
    last = begin

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name] = now - last
        last = now

    anatomy = resolve(model)
    method = find_method(request["method"])
    setting = Setting(
        anatomy,
        batches,
        Scheme.parse(request["bits"]),
        options={method.name: request.get("settings", {})},
    )
    ids = proof_ids(batches)
    original = outputs(anatomy, ids)
    lap("resolve")
    seams = usable_seams(anatomy, setting)
    lap("check seams")
    found = find(setting, method, 0, anatomy, seams)
    lap("search")
    transform = Transform([c for c in found.changes if not c.is_empty])
    error = transform.prove(anatomy, seams, ids=ids)
    lap("prove")
    transform.fold(anatomy, seams)
    lap("fold")
    equal = verify(anatomy, original, ids, float64=error)
    lap("verify")
    seconds["core"] = time.perf_counter() - begin
    seconds["processor"] = time.process_time() - processor
    return {
        "seconds": seconds,
        "before_mib": before,
        "peak_mib": peak_mib(),
        "changed": len(transform.changes),
        "float64": equal.float64,
        "stored": equal.stored,
    }


def verb(request: dict[str, Any]) -> dict[str, Any]:
    """The same as a user asks for it."""
    start = time.perf_counter()
    import torch

    import skerry

    imports = time.perf_counter() - start
    start, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        skerry.tame(
            request["model"],
            torch.tensor(request["ids"]),
            method=request["method"],
            bits=request["bits"],
            settings={request["method"]: request.get("settings", {})},
            calibration=len(request["ids"]),
            evaluate=False,
            out=request.get("out"),
            threads=request["threads"],
            run=f"{folder}/run",
        )
    return {
        "seconds": {
            "imports": imports,
            "core": time.perf_counter() - start,
            "processor": time.process_time() - processor,
        },
        "peak_mib": peak_mib(),
    }


def floor(request: dict[str, Any]) -> dict[str, Any]:
    """What a process holds that imports the libraries, loads the weights and reads each once."""
    import torch
    from transformers import AutoModelForCausalLM

    import skerry.tame.tame  # noqa: F401

    imports = peak_mib()
    model = AutoModelForCausalLM.from_pretrained(request["model"]).eval()
    classes = peak_mib()
    with torch.inference_mode():
        touched = sum(float(p.amax()) for p in model.parameters())
    return {"imports_mib": imports, "mapped_mib": classes, "floor_mib": peak_mib(), "touched": touched}


def growth(request: dict[str, Any]) -> dict[str, Any]:
    """Peak of an OS+ run beyond what was resident before it."""
    import torch
    from scan import forget_peak, resident_peak
    from tame_models import make, random_ids

    from skerry.anatomy import resolve, run
    from skerry.anatomy.pages import give_back
    from skerry.corpus.batch import Batch
    from skerry.impact.scheme import Scheme
    from skerry.tame.pipeline import Setting, run_pipeline
    from skerry.tame.register import parse_pipeline

    torch.set_num_threads(request["threads"])
    model = make(
        "LlamaForCausalLM",
        hidden_size=request["width"],
        intermediate_size=request["inner"],
        num_hidden_layers=request["blocks"],
    )
    ids = random_ids(512, request["samples"], request["tokens"], seed=1)
    keep = torch.ones_like(ids, dtype=torch.bool)
    step = request["samples_per_batch"]
    batches = [
        Batch(ids[i : i + step], keep[i : i + step], torch.arange(i, i + len(ids[i : i + step])))
        for i in range(0, len(ids), step)
    ]
    anatomy = resolve(model)
    with torch.inference_mode():
        run(anatomy, batches[0].input_ids)
    # What loading and this forward left free would otherwise be used first, and hide what the search needs.
    give_back()
    forget_peak()
    before = resident_peak()
    start = time.perf_counter()
    run_pipeline(Setting(anatomy, batches, Scheme.parse("w8a8")), parse_pipeline(request["method"]))
    return {"beyond_mib": resident_peak() - before, "seconds": time.perf_counter() - start}


def score(request: dict[str, Any]) -> dict[str, Any]:
    """Relative logit error, |new - old| / |old| over all held-out tokens, and mean next-token loss, of each checkpoint."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(request["threads"])
    ids = torch.tensor(request["ids"])
    wanted = logits_of(AutoModelForCausalLM.from_pretrained(request["model"]).eval(), ids)
    found = {"float": {"error": 0.0, "loss": loss_of(wanted, ids)}}
    for name, place in request["checkpoints"].items():
        given = logits_of(AutoModelForCausalLM.from_pretrained(place).eval(), ids)
        found[name] = {"error": relative(given, wanted), "loss": loss_of(given, ids)}
    return found


def logits_of(model: Any, ids: Any) -> list[Any]:
    """Logits of every input, one input at a time."""
    import torch

    with torch.inference_mode():
        return [model(row[None], use_cache=False).logits[0] for row in ids]


def relative(given: list[Any], wanted: list[Any]) -> float:
    """|given - wanted| / |wanted|, Euclidean norms over all tokens and words."""
    off = sum(float((g.double() - w.double()).square().sum()) for g, w in zip(given, wanted, strict=True))
    return (off / sum(float(w.double().square().sum()) for w in wanted)) ** 0.5


def loss_of(logits: list[Any], ids: Any) -> float:
    """Mean next-token loss, nats."""
    import torch

    each = [
        torch.nn.functional.cross_entropy(x[:-1].float(), row[1:]) for x, row in zip(logits, ids, strict=True)
    ]
    return float(torch.stack(each).mean())


if __name__ == "__main__":
    stage = {"pieces": pieces, "verb": verb, "score": score, "floor": floor, "growth": growth}[sys.argv[1]]
    print(MARK + json.dumps(stage(json.loads(Path(sys.argv[2]).read_text()))), flush=True)
