"""Where a model computes and in which numbers: chosen, with the reason, or as asked for."""

from __future__ import annotations

from typing import Any

import torch

from skerry.choices import Choice
from skerry.errors import UnknownOption, near_matches

_SPELLINGS = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp64": torch.float64,
    "float64": torch.float64,
    "double": torch.float64,
}
_STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_KINDS = ("auto", "cpu", "cuda", "mps")


def name_of(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def asked_dtype(dtype: Any) -> torch.dtype | None:
    """What a user wrote as a floating type; None for `auto`.

    Raises:
        UnknownOption: No such type.
    """
    if dtype is None or dtype == "auto":
        return None
    known = (
        dtype if isinstance(dtype, torch.dtype) else _SPELLINGS.get(str(dtype).lower().removeprefix("torch."))
    )
    if known not in _SPELLINGS.values():
        near = near_matches(str(dtype), list(_SPELLINGS))
        raise UnknownOption(
            f"no dtype {str(dtype)!r}: {f'did you mean {near}? ' if near else ''}it is auto, bf16, fp16, fp32 or fp64"
        )
    return known


def choose_dtype(
    asked: torch.dtype | None, device: torch.device, *, stored: str | None, config: Any
) -> Choice[torch.dtype]:
    """The type to compute in: as asked, else as stored, but no half precision on a CPU.

    Args:
        asked: What the user wants.
        device: Where the model will compute.
        stored: Type of the stored weights, as safetensors call it.
        config: What the configuration names, where the files do not say.
    """
    if asked is not None:
        return Choice(asked, "asked for")
    if stored in _STORED:
        kept, where = _STORED[stored], "stored like that"
    elif (named := _SPELLINGS.get(str(config).removeprefix("torch."))) is not None:
        kept, where = named, "the configuration says so"
    else:
        return Choice(
            torch.float32,
            f"stored as {stored}, computed in float32"
            if stored
            else "neither files nor configuration name another",
        )
    if kept == torch.float16 and device.type == "cpu":
        return Choice(
            torch.float32,
            "stored as float16, which is slow on a CPU and overflows at 65504, just where outliers live",
        )
    return Choice(kept, where)


def choose_device(device: Any) -> Choice[torch.device]:
    """The device: as asked, else the first of cuda, mps, cpu that is there.

    Raises:
        UnknownOption: No such device, or not here.
    """
    if device is None or str(device) == "auto":
        if torch.cuda.is_available():
            return Choice(torch.device("cuda"), "torch sees a CUDA device")
        if torch.backends.mps.is_available():
            return Choice(torch.device("mps"), "torch sees no CUDA device, but Apple's GPU")
        return Choice(torch.device("cpu"), "torch sees no GPU")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        near = near_matches(str(device), _KINDS)
        raise UnknownOption(
            f"no device {str(device)!r}: {f'did you mean {near}? ' if near else ''}it is auto, cpu, cuda, cuda:N or mps"
        ) from error
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (chosen.index or 0) >= here.get(chosen.type, 0):
        seen = [kind if n == 1 else f"{n} x {kind}" for kind, n in here.items() if n]
        raise UnknownOption(f"device {str(device)!r} is not here; torch sees {', '.join(seen)}")
    return Choice(chosen, "asked for")


def check_pair(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a type that a device does not have.

    Raises:
        UnknownOption: float64 on Apple's GPU.
    """
    if dtype == torch.float64 and device.type == "mps":
        raise UnknownOption("Apple's GPU has no float64; use dtype fp32, or device cpu")
