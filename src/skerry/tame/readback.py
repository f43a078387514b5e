"""Reads an export back: a fresh Python process that has never seen skerry loads the folder with plain transformers and runs it.

The process gets fixed token ids and returns logits (hidden states of a model without head), [sample, position, channel].  They are compared
with what our own model, or our simulation of the quantized one, computed from the same ids:

    relative error = max |theirs - ours| / max |ours|

The same operations in the same order give 0; a bound above 0 allows for another order of sums.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skerry.anatomy.load import max_positions, vocab_size
from skerry.anatomy.quiet import quiet
from skerry.errors import BrokenModel

TIMEOUT_SECONDS = 1800.0
# Largest relative error of the same function, summed in another order: some hundred roundings of the type.
BOUNDS = {torch.float64: 2e-6, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_TEXT = "A skerry is a small rock: 17 of them, in the sea."

_SCRIPT = r"""
import json, sys, traceback
with open(sys.argv[1], encoding="utf-8") as file:
    asked = json.load(file)
import torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(asked["threads"])
named = asked["architecture"]
if named is None:
    with open(asked["folder"] + "/config.json", encoding="utf-8") as file:
        named = json.load(file)["architectures"][0]
auto = {"ForCausalLM": "AutoModelForCausalLM", "LMHeadModel": "AutoModelForCausalLM", "ForMaskedLM": "AutoModelForMaskedLM"}
kind = getattr(transformers, next((a for end, a in auto.items() if named.endswith(end)), named))
model, info = kind.from_pretrained(asked["folder"], output_loading_info=True, local_files_only=True, **asked["options"])
model = model.eval().to(asked["device"])
with torch.no_grad():
    out = model(input_ids=load_file(asked["ids"])["ids"].to(asked["device"]), **asked["inputs"])
values = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
save_file({"values": values.cpu().contiguous()}, asked["answer"])
words = None
if asked["text"] is not None:
    words = list(transformers.AutoTokenizer.from_pretrained(asked["folder"], local_files_only=True)(asked["text"])["input_ids"])
assert "skerry" not in sys.modules
print(json.dumps({
    "architecture": named, "class": type(model).__name__, "words": words, "transformers": transformers.__version__,
    "torch": torch.__version__, "gaps": {key: sorted(map(str, names)) for key, names in info.items() if names},
}))
"""


class ReadBackFailed(BrokenModel):
    """The export could not be loaded by plain transformers, or computes something else than our model."""


class Readback(NamedTuple):
    """What a fresh process with plain transformers found.

    Attributes:
        max_relative_error: max |theirs - ours| / max |ours| over all outputs.
        bound: What was allowed.
        max_abs_error: In the units of the logits.
        top1_agreement: Share of positions with the same largest output.
        num_positions: How many positions were compared.
        loaded_as: Class that transformers chose.
        versions: Of the libraries in that process.
        seconds: How long it took.
    """

    max_relative_error: float
    bound: float
    max_abs_error: float
    top1_agreement: float
    num_positions: int
    loaded_as: str
    versions: dict[str, str]
    seconds: float


def fixed_ids(
    model: nn.Module, *, num_samples: int = 2, length: int = 32, seed: int = 0
) -> Int[Tensor, "sample position"]:
    """Random token ids that fit the model, the same for the same model size."""
    length = min(length, max_positions(model) or length)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size(model) or 1, (num_samples, length), generator=generator)


def outputs_of(
    model: nn.Module, ids: Int[Tensor, "sample position"]
) -> Float[Tensor, "sample position channel"]:
    """Logits of a model, hidden states of one without head; on the CPU."""
    with quiet(model):
        out = model(input_ids=ids.to(next(model.parameters()).device), **_inputs(model))
    values = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    return values.detach().cpu()


def relative_error(theirs: Float[Tensor, "*axes"], ours: Float[Tensor, "*axes"]) -> float:
    """Largest |theirs - ours| by the largest |ours|; infinite where either holds a NaN."""
    difference = float((theirs.double() - ours.double()).abs().max())
    largest = float(ours.double().abs().max())
    relative = difference / largest if largest else difference
    return math.inf if math.isnan(relative) else relative


def read_back(
    folder: Path,
    model: nn.Module,
    expected: Float[Tensor, "sample position channel"],
    *,
    ids: Int[Tensor, "sample position"],
    bound: float,
    tokenizer: Any = None,
    architecture: str | None = None,
    options: dict[str, Any] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Readback:
    """Load an export in a fresh process and compare it.

    Args:
        folder: The export.
        model: Our model, whose attention and expert implementations the other process shall use.
        expected: What we computed from `ids`.
        ids: Token ids.
        bound: Largest relative error that is allowed.
        tokenizer: What the folder's tokenizer must agree with; None where none was exported.
        architecture: Class that must come out, where the folder has no config.json that names it.
        options: More arguments of `from_pretrained`.
        timeout_seconds: How long the other process may take.

    Raises:
        ReadBackFailed: It could not be loaded, lacks or ignores tensors, is another class, or differs by more than the bound.
    """
    from safetensors.torch import load_file, save_file

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="skerry-readback-") as scratch:
        place = Path(scratch)
        save_file({"ids": ids.contiguous()}, place / "ids.safetensors")
        asked = {
            "folder": str(folder.resolve()),
            "ids": str(place / "ids.safetensors"),
            "answer": str(place / "answer.safetensors"),
            "threads": torch.get_num_threads(),
            "architecture": architecture,
            "device": str(next(model.parameters()).device),
            "options": {**_implementations(model), **(options or {})},
            "inputs": _inputs(model),
            "text": None if tokenizer is None else _TEXT,
        }
        (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        said = _run([sys.executable, "-c", _SCRIPT, str(place / "asked.json")], place, timeout_seconds)
        values = load_file(place / "answer.safetensors")["values"]
    _check_answer(said, tokenizer)
    return compare(
        values,
        expected,
        bound=bound,
        loaded_as=said["class"],
        versions={"transformers": said["transformers"], "torch": said["torch"]},
        seconds=time.monotonic() - begun,
    )


def _run(command: Sequence[str], place: Path, timeout_seconds: float) -> dict[str, Any]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=timeout_seconds
        )
    except subprocess.TimeoutExpired as error:
        raise ReadBackFailed(
            f"the export was not read back within {timeout_seconds:.0f} seconds; nothing was kept"
        ) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise ReadBackFailed(
            "plain transformers cannot load or run the export, and nothing was kept: "
            + " | ".join(lines[-3:] or [f"exit code {done.returncode}"])
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _check_answer(said: dict[str, Any], tokenizer: Any) -> None:
    if said["gaps"]:
        kind, names = next(iter(said["gaps"].items()))
        raise ReadBackFailed(
            f"plain transformers reports {kind.replace('_', ' ')} in the export, and nothing was kept: {', '.join(names[:3])}"
            f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        )
    if said["architecture"] not in (said["class"], f"FSDP{said['class']}"):
        raise ReadBackFailed(
            f"the export says {said['architecture']} and plain transformers loads {said['class']}; nothing was kept"
        )
    if tokenizer is not None and said["words"] != (ours := list(tokenizer(_TEXT)["input_ids"])):
        raise ReadBackFailed(
            f"the exported tokenizer cuts {_TEXT!r} into {said['words']} and the model's own into {ours}; nothing was kept"
        )


def compare(
    values: Float[Tensor, "sample position channel"],
    expected: Float[Tensor, "sample position channel"],
    *,
    bound: float,
    loaded_as: str,
    versions: dict[str, str],
    seconds: float,
) -> Readback:
    """What was read back beside what we computed.

    Args:
        values: Theirs.
        expected: Ours.
        bound: Largest relative error that is allowed.
        loaded_as: What computed theirs.
        versions: Of its libraries.
        seconds: How long it took.

    Raises:
        ReadBackFailed: They differ by more than the bound, or in shape.
    """
    if values.shape != expected.shape:
        raise ReadBackFailed(
            f"the export computes outputs of shape {list(values.shape)} and our model {list(expected.shape)}; nothing was kept"
        )
    theirs, ours = values.double(), expected.double()
    relative = relative_error(theirs, ours)
    same = float((theirs.argmax(-1) == ours.argmax(-1)).double().mean())
    positions = ours.shape[0] * ours.shape[1]
    if relative > bound:
        raise ReadBackFailed(
            f"the export computes another function: relative error {relative:.2g} of the outputs, {bound:.2g} is allowed, the largest "
            f"output agrees at {same:.0%} of {positions} positions; nothing was kept"
        )
    error = float((theirs - ours).abs().max())
    return Readback(relative, bound, error, same, positions, loaded_as, versions, seconds)


def _inputs(model: nn.Module) -> dict[str, Any]:
    return {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}


def _implementations(model: nn.Module) -> dict[str, str]:
    """Which code computes attention and experts: chosen anew by the other process, the order of sums could differ."""
    config = getattr(model, "config", None)
    found = {
        "attn_implementation": getattr(config, "_attn_implementation", None),
        "experts_implementation": getattr(config, "_experts_implementation", None),
    }
    return {key: value for key, value in found.items() if isinstance(value, str) and value != "skerry"}
