"""Everything a training needs before its first step: data, model, optimiser, device, and what was chosen with its reason."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from skerry.anatomy.placing import choose_device
from skerry.anatomy.threads import choose_threads
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.recipe import Recipe
from skerry.redesign.train_data import Data, load_data
from skerry.redesign.train_folder import FACTS, TOKENIZER, read_json, write_json
from skerry.redesign.train_model import choose_precision, make_model, make_optimiser


@dataclass(eq=False)
class Session:
    """A training that is set up.

    Attributes:
        recipe: What is trained.
        folder: Where.
        data: What it reads.
        model: The decoder itself.
        run: The decoder as it is called in a step: compiled, distributed, or itself.
        optimizer: Over the parameters of `model`.
        device: Where it computes.
        bf16: Whether products are in bfloat16.
        threads: Of the CPU.
    """

    recipe: Recipe
    folder: Path
    data: Data
    model: DecoderForCausalLM
    run: nn.Module
    optimizer: Optimizer
    device: torch.device
    bf16: bool
    threads: int

    def autocast(self) -> torch.autocast:
        """Products in bfloat16 where the recipe says so; weights and optimiser are float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The training's own threads and random state while open; the caller's are as before afterwards."""
        threads = torch.get_num_threads()
        devices = [self.device] if self.device.type == "cuda" else []
        torch.set_num_threads(self.threads)
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(self.recipe.seed)
                yield
        finally:
            torch.set_num_threads(threads)


def set_up(recipe: Recipe, folder: Path, *, device: Any = None, threads: int | None = None) -> Session:
    """Set up the training of a recipe in a folder that is its own.

    Args:
        recipe: What.
        folder: Where; `facts.json` is written, and read when the training goes on.
        device: Chosen when None.
        threads: Chosen when None; a training that goes on keeps its number, on which the last bits depend.

    Raises:
        UnknownOption, BadText, BadTokens, MissingExtra: See `train`.
    """
    data = load_data(recipe, folder / TOKENIZER)
    place = choose_device(device).value
    before = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model = make_model(recipe, vocab_size=data.vocab_size, bos=data.bos)
    model.train().to(place)
    precision = choose_precision(recipe.precision, place)
    count = sum(p.numel() for p in model.parameters())
    chosen = choose_threads(
        count * 3,
        tokens_per_forward=recipe.batch * recipe.context,
        requested=before.get("threads") if threads is None else threads,
    )
    facts = {
        "data": data.name,
        "data_key": data.key,
        "num_tokens": data.num_tokens,
        "vocab_size": data.vocab_size,
        "parameters": count,
        "device": str(place),
        "precision": precision.value,
        "precision_why": precision.why,
        "threads": chosen.value,
        "threads_why": before.get("threads_why", chosen.why),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    check_same(before, facts, folder)
    write_json(folder / FACTS, facts)
    return Session(
        recipe=recipe,
        folder=folder,
        data=data,
        model=model,
        run=torch.compile(model) if recipe.compile else model,  # type: ignore[arg-type]
        optimizer=make_optimiser(recipe, model),
        device=place,
        bf16=precision.value == "bf16",
        threads=chosen.value,
    )


def check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with other data under the same name.

    Raises:
        RunExists: With the difference.
    """
    from skerry.errors import RunExists

    if before and before.get("data_key") != now["data_key"]:
        raise RunExists(
            f"the text of the training in {folder} has changed: {before.get('data')} with {before.get('num_tokens')} tokens there, "
            f"{now['data']} with {now['num_tokens']} here; give the same text to go on, or another folder"
        )
