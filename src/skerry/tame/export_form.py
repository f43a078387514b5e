"""What is exported, and what every form of export prepares: how to write it and how to read it back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skerry.impact.quantize import Grid
from skerry.impact.scheme import Scheme
from skerry.tame.export_card import CardFacts
from skerry.tame.readback import Readback


@dataclass(frozen=True)
class Export:
    """What is written.

    Attributes:
        model: The tamed float model; it is left as it is.
        tokenizer: Its tokenizer; None exports none.
        card: What the model card says.
        scheme: How it is quantized; None for float only.
        weights: Map to the fake-quantized weight [out in] and its grid, as GPTQ gives them; maps that are not named are rounded to nearest.
        input_grids: Map to the static grid of its input.
        only: Names of the maps that are quantized; all by default.
        config_changes: Settings of the configuration that the taming changed.
        becomes: Model type to export as, where the own class has no place for a bias.
        needs: What the model needs beside its weights while it runs: a kind of `export_refuse.RUNTIME` to where.
        dtype: Type of the stored floats; None keeps the model's.
    """

    model: nn.Module
    tokenizer: Any
    card: CardFacts
    scheme: Scheme | None = None
    weights: Mapping[str, tuple[Tensor, Grid]] = field(default_factory=dict)
    input_grids: Mapping[str, Grid] = field(default_factory=dict)
    only: frozenset[str] | None = None
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    becomes: str | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype | None = None


class Prepared(NamedTuple):
    """An export that passed all refusals and is ready to be written.

    Attributes:
        num_bytes: About how much it will take.
        write: Writes everything but the card into a folder; returns what a user should know.
        read: Reads the folder back.
        config_changes: Settings that differ from the source's.
        conversion_error: Relative error of the outputs from storing floats in another type.
    """

    num_bytes: int
    write: Callable[[Path], list[str]]
    read: Callable[[Path], Readback]
    config_changes: dict[str, Any]
    conversion_error: float = 0.0


def dtype_of(model: nn.Module) -> torch.dtype:
    """Type of the first parameter."""
    return next(model.parameters()).dtype


def in_dtype(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model itself, or a copy whose saved floats have another type; buffers that are not saved keep theirs, as in a loaded model."""
    if dtype is None or dtype == dtype_of(model):
        return model
    model = copy.deepcopy(model)
    saved = {t.data_ptr() for t in model.state_dict().values()}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and buffer.data_ptr() in saved:
                module._buffers[name] = buffer.to(dtype)
    return model


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer beside its model."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
