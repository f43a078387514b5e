"""Runs a model for a look at its structure and leaves no trace: no dropout, no random number drawn, no buffer changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from skerry.errors import BrokenModel

# Larger buffers are the packed weights of quantized layers; a forward does not write those, and copying them would double the model.
_COPIED = 1 << 22


def check_weights(model: nn.Module) -> None:
    """Refuse a model that cannot run.

    Raises:
        BrokenModel: No parameters, or parameters that have a shape and no values.
    """
    name = type(model).__name__
    if next(model.parameters(), None) is None:
        raise BrokenModel(f"{name} has no parameters; give the whole model, an nn.Module with its weights")
    empty = [n for n, p in model.named_parameters() if p.is_meta]
    if empty:
        raise BrokenModel(
            f"{len(empty)} parameters of {name} are on the meta device ({empty[0]}, ...): they have shapes but no values; "
            "load the weights before measuring, and without offloading to the disk"
        )


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while open; afterwards every module's mode, the random state and the buffers are as before."""
    modes = {m: m.training for m in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone() if buffer.numel() <= _COPIED else None, _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if isinstance(buffer, Tensor)
    ]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, name, buffer, copy, version in buffers:
            if copy is not None and (version is None or buffer._version != version):
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(copy)
            module._buffers[name] = buffer


def _version(buffer: Tensor) -> int | None:
    """How often it was written into; None where nobody counts: a model that was loaded under inference mode."""
    return None if buffer.is_inference() else buffer._version
