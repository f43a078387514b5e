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

from skerry.anatomy.threads import choose_threads
from skerry.errors import NotPossible
from skerry.redesign.checkpointing import KEPT
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.recipe import Recipe
from skerry.redesign.train_data import Data, load_data
from skerry.redesign.train_devices import Devices, Prepared
from skerry.redesign.train_folder import FACTS, TOKENIZER, claim_folder, read_json
from skerry.redesign.train_model import choose_precision, make_model, make_optimiser
from skerry.run.space import check_space

_BYTES_OF_STATE, _BYTES_OF_MODEL = 12, 4


@dataclass(eq=False)
class Session:
    """A training that is set up.

    Attributes:
        recipe: What is trained.
        folder: Where.
        data: What it reads.
        devices: Where it computes.
        model: The decoder itself; of no use but for its configuration where the devices are sharded.
        prepared: The decoder as it is spread over the processes, and its optimiser.
        run: The decoder as it is called in a step: spread, and compiled where the recipe says so.
        bf16: Whether products are in bfloat16.
        threads: Of the CPU.
    """

    recipe: Recipe
    folder: Path
    data: Data
    devices: Devices
    model: DecoderForCausalLM
    prepared: Prepared
    run: nn.Module
    bf16: bool
    threads: int

    def autocast(self) -> torch.autocast:
        """Products in bfloat16 where the recipe says so; weights and optimiser are float32."""
        return torch.autocast(self.devices.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The training's own threads and random state while open; the caller's are as before afterwards."""
        threads = torch.get_num_threads()
        devices = [self.devices.device] if self.devices.device.type == "cuda" else []
        torch.set_num_threads(self.threads)
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(self.recipe.seed)
                yield
        finally:
            torch.set_num_threads(threads)


def set_up(
    recipe: Recipe,
    folder: Path,
    devices: Devices,
    *,
    threads: int | None = None,
    num_checkpoints: int = 0,
    claims: bool = True,
) -> Session:
    """Set up the training of a recipe.

    Args:
        recipe: What; checked already.
        folder: Where.
        devices: Where it computes.
        threads: Chosen when None; a training that goes on keeps its number, on which the last bits depend.
        num_checkpoints: Models that will be kept, for the space on the disk.
        claims: Write into the folder that it is this recipe's.

    Raises:
        BadText, BadTokens, UnknownOption, NotPossible, NoSpace, RunExists: See `train`.
    """
    with devices.main_first():
        before = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
        data = load_data(recipe, folder / TOKENIZER)
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            model = make_model(recipe, vocab_size=data.vocab_size, bos=data.bos)
        facts = facts_of(recipe, data, model, devices, before, threads)
        if claims and devices.is_main:
            per_parameter = (KEPT + 1) * _BYTES_OF_STATE + (num_checkpoints + 1) * _BYTES_OF_MODEL
            check_space(folder, per_parameter * facts["parameters"])
            claim_folder(folder, recipe, facts, data.tokenizer)
    model.train().to(devices.device)  # type: ignore[arg-type]
    if devices.is_sharded and recipe.objective:
        raise NotPossible(
            "an objective looks at whole weights, and this launch shards them; launch without FSDP"
        )
    devices.share(data.batch(0))
    prepared = devices.prepare(model, make_optimiser(recipe, model))
    return Session(
        recipe=recipe,
        folder=folder,
        data=data,
        devices=devices,
        model=model,
        prepared=prepared,
        run=torch.compile(prepared.run) if recipe.compile else prepared.run,  # type: ignore[arg-type]
        bf16=facts["precision"] == "bf16",
        threads=facts["threads"],
    )


def facts_of(
    recipe: Recipe,
    data: Data,
    model: nn.Module,
    devices: Devices,
    before: dict[str, Any],
    threads: int | None,
) -> dict[str, Any]:
    """What the recipe comes to here; `before` is what it came to when the training began."""
    precision = choose_precision(recipe.precision, devices.device)
    count = sum(p.numel() for p in model.parameters())
    # A step is a forward and a backward, which is twice as long.
    chosen = choose_threads(
        3 * count,
        tokens_per_forward=recipe.batch * recipe.context,
        requested=before.get("threads") if threads is None else threads,
    )
    return {
        "data": data.name,
        "data_key": data.key,
        "num_tokens": data.num_tokens,
        "vocab_size": data.vocab_size,
        "parameters": count,
        "device": str(devices.device),
        "processes": devices.num_processes,
        "precision": precision.value,
        "precision_why": precision.why,
        "threads": chosen.value,
        "threads_why": before.get("threads_why", chosen.why) if threads is None else chosen.why,
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
