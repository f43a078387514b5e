"""One process, or several that share every batch: the recipe's batch is that of all of them together, so a training is the same on any number.

Several are started by `accelerate launch` or `torchrun`, and are found by the environment that these set. Each process reads its share of the
rows of every micro-batch; gradients are averaged by DistributedDataParallel, or by FSDP when the launch asks for it. The first one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from skerry.anatomy.placing import choose_device
from skerry.errors import MissingExtra, UnknownOption


class Prepared(NamedTuple):
    """A model and its optimiser, ready for steps.

    Attributes:
        run: What is called.
        optimizer: What moves.
    """

    run: nn.Module
    optimizer: Optimizer


class Devices:
    """One process on one device.

    Attributes:
        device: Where it computes.
        num_processes: All of them.
        rank: This one's number.
        is_sharded: Whether no process holds the whole weights.
    """

    num_processes, rank, is_sharded = 1, 0, False

    def __init__(self, device: Any) -> None:
        """On the device, chosen when None."""
        self.device: torch.device = choose_device(device).value

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes through this block before all others do."""
        yield

    def wait(self) -> None:
        """Until all processes are here."""

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> Prepared:
        """Spread a model over the processes."""
        return Prepared(model, optimizer)

    def share(self, ids: Int[Tensor, "sample position"]) -> Int[Tensor, "row position"]:
        """This process's rows of a batch."""
        return ids

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        return values

    def clip(self, run: nn.Module, largest: float) -> Tensor:
        """Scale the gradients to a norm of at most `largest` (0: leave them), and return the norm that they had."""
        parameters = [p for p in run.parameters() if p.grad is not None]
        if largest > 0:
            return nn.utils.clip_grad_norm_(parameters, largest)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def state(self, model: nn.Module, prepared: Prepared) -> dict[str, Any]:
        """Weights and moments, whole; the model is the one that was prepared."""
        return {"model": model.state_dict(), "optimiser": prepared.optimizer.state_dict()}

    def load(self, model: nn.Module, prepared: Prepared, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        model.load_state_dict(state["model"])
        prepared.optimizer.load_state_dict(state["optimiser"])


class Several(Devices):
    """One of several processes."""

    def __init__(self, device: Any) -> None:
        """Join the others, through accelerate.

        Raises:
            MissingExtra: accelerate is not installed.
        """
        try:
            from accelerate import Accelerator
        except ImportError as absent:
            raise MissingExtra(
                "a training in several processes needs accelerate: pip install 'skerry[train]'"
            ) from absent
        self.accelerator: Any = Accelerator(cpu=str(device) == "cpu")
        self.device = self.accelerator.device
        self.num_processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.is_sharded = "FSDP" in str(self.accelerator.distributed_type)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes through this block before all others do."""
        with self.accelerator.main_process_first():
            yield

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> Prepared:
        """Spread a model over the processes."""
        return Prepared(*self.accelerator.prepare(model, optimizer))

    def share(self, ids: Int[Tensor, "sample position"]) -> Int[Tensor, "row position"]:
        """This process's rows of a batch.

        Raises:
            UnknownOption: The batch cannot be shared evenly.
        """
        if len(ids) % self.num_processes:
            raise UnknownOption(
                f"a batch of {len(ids)} cannot be shared by {self.num_processes} processes; make it a multiple of {self.num_processes}"
            )
        return ids.tensor_split(self.num_processes)[self.rank]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        reduced: Tensor = self.accelerator.reduce(values, reduction="mean")
        return reduced

    def clip(self, run: nn.Module, largest: float) -> Tensor:
        """Scale the gradients to a norm of at most `largest` (0: leave them), and return the norm that they had."""
        norm = self.accelerator.clip_grad_norm_(run.parameters(), largest or torch.inf)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def state(self, model: nn.Module, prepared: Prepared) -> dict[str, Any]:
        """Weights and moments, whole, on the first process; every process must call this."""
        if not self.is_sharded:
            return super().state(model, prepared)
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, moments = get_state_dict(prepared.run, _inner(prepared.optimizer), options=options)
        return {"model": weights, "optimiser": moments}

    def load(self, model: nn.Module, prepared: Prepared, state: dict[str, Any]) -> None:
        """The inverse of `state`; every process has read the file."""
        if not self.is_sharded:
            super().load(model, prepared, state)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        set_state_dict(
            prepared.run,
            _inner(prepared.optimizer),
            model_state_dict=state["model"],
            optim_state_dict=state["optimiser"],
            options=StateDictOptions(full_state_dict=True),
        )


def _inner(optimizer: Any) -> Optimizer:
    """The optimiser inside accelerate's wrapper."""
    found: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def find_devices(device: Any = None) -> Devices:
    """What the environment says: one process, or one of several."""
    return Several(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Devices(device)


def is_first_process() -> bool:
    """Whether this process is the only one or the first of several, which alone writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0
