"""The peer of taming: llm-compressor's SmoothQuant and W8A8 in one call, in an interpreter of its own.

It pins an older transformers than this project uses, so it cannot live in the same environment. Run by the peer's interpreter,

    PEER_PYTHON benchmarks/tame_peer.py REQUEST.json

it imports nothing of this project, quantizes the checkpoint that the request names, saves the result and prints one line of JSON. `install` and
`find` are called by `benchmarks/tame.py` in the project's own interpreter.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

PACKAGES = ("torch==2.13.0", "llmcompressor==0.14.0.1")
MARK = "PEER-RESULT "


def find(given: str | None, cache: Path) -> Path | None:
    """The peer's interpreter: the one named, else the one that `install` made; None without one."""
    place = Path(given) if given else cache / "peer" / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not place.exists():
        return None
    probe = subprocess.run(
        [place, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('llmcompressor') is None)"],
        check=False,
    )
    return place if probe.returncode == 0 else None


def install(cache: Path) -> None:
    """Make an environment for the peer in the cache folder; about 1.5 GB, mostly torch."""
    place = cache / "peer"
    venv.create(place, with_pip=True)
    pip = [place / ("Scripts" if os.name == "nt" else "bin") / "python", "-m", "pip", "install", "-qq"]
    # torch first and by its exact version: a range would let pip prefer a build with gigabytes of CUDA libraries.
    for package in PACKAGES:
        subprocess.run([*pip, package], check=True)


def run(python: Path, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Ask the peer; what it says, or `error` with its last words."""
    question = folder / "peer-request.json"
    question.write_text(json.dumps(request))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["OMP_NUM_THREADS"] = str(request["threads"])
    environment.pop("PYTHONPATH", None)
    start = time.perf_counter()
    done = subprocess.run(
        [python, Path(__file__).resolve(), question],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        return {"error": (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]}
    return {**json.loads(lines[-1].removeprefix(MARK)), "process": time.perf_counter() - start}


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor_of(vocab: int) -> Any:
    """A tokenizer, which the peer wants even where ids are given: one word per id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocab)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), unk_token="w0", pad_token="w1"
    )


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """One run of the peer, as its documentation has it: SmoothQuant at strength 0.5, then W8A8 with dynamic ranges per token."""
    start = time.perf_counter()
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from loguru import logger
    from transformers import AutoModelForCausalLM

    logger.remove()
    torch.set_num_threads(request["threads"])
    seconds = {"imports": time.perf_counter() - start}
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(request["model"]).eval()
    ids = torch.tensor(request["ids"])
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    recipe: list[Any] = [QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])]
    if request["method"] == "smoothquant":
        recipe.insert(0, SmoothQuantModifier(smoothing_strength=0.5))
    processor = processor_of(model.config.vocab_size)
    seconds["loading"] = time.perf_counter() - start
    before = peak_mib()
    start, processor_time = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        dataset=torch.utils.data.DataLoader(samples, batch_size=1),
        processor=processor,
        recipe=recipe,
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
    )
    seconds["core"] = time.perf_counter() - start
    seconds["processor"] = time.process_time() - processor_time
    peak = peak_mib()
    start = time.perf_counter()
    model.save_pretrained(request["out"])
    seconds["saving"] = time.perf_counter() - start
    return {"seconds": seconds, "before_mib": before, "peak_mib": peak, "saved_mib": peak_mib()}


if __name__ == "__main__":
    print(MARK + json.dumps(quantize(json.loads(Path(sys.argv[1]).read_text()))), flush=True)
