"""What a training keeps: states to go on from, models, and at its end the held-out loss and the tables."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import numpy as np
import torch

from skerry.redesign.checkpointing import save_state
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.train_folder import (
    BIRTHS,
    LOSSES,
    MODEL,
    RESULT,
    RESUME,
    read_lines,
    save_folder,
    save_table,
    write_json,
)
from skerry.redesign.train_setup import Session

EXPORTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def keep_state(session: Session, step: int, *, seconds: float) -> None:
    """Save everything that the next step depends on."""
    devices = session.devices
    content: dict[str, Any] = {
        **devices.state(session.model, session.prepared),
        "random": torch.get_rng_state(),
        "seconds": seconds,
    }
    if devices.device.type == "cuda":
        content["random_device"] = torch.cuda.get_rng_state(devices.device)
    if devices.is_main:
        save_state(session.folder / RESUME, step, content)
    devices.wait()


def keep_model(session: Session, name: str, *, dtype: str = "fp32") -> None:
    """Save the model as it is now, with its tokenizer, as a folder that transformers or skerry loads."""
    devices, tokenizer = session.devices, session.data.tokenizer
    model = session.model
    if devices.is_sharded:
        weights = devices.state(model, session.prepared)["model"]
        if devices.is_main:
            model = DecoderForCausalLM(cast(DecoderConfig, model.config))
            model.load_state_dict(weights)
    if devices.is_main:
        if dtype != "fp32":
            model = copy.deepcopy(model).to(dtype=EXPORTS[dtype])  # type: ignore[call-arg]
        parts = [] if tokenizer is None else [tokenizer.save_pretrained]
        save_folder(session.folder / name, model.save_pretrained, *parts)
    devices.wait()


def finish(session: Session, *, step: int, seconds: float, dtype: str, privacy: Any = None) -> None:
    """Held-out loss, final model, tables; the result is written last, so a folder with one is complete."""
    held_out = held_out_loss(session)
    keep_model(session, MODEL, dtype=dtype)
    if not session.devices.is_main:
        return
    folder, recipe = session.folder, session.recipe
    rows = read_lines(folder / LOSSES, up_to=step)
    parts = [row.pop("parts", {}) for row in rows]
    for row, found in zip(rows, parts, strict=True):
        row["parts"] = json.dumps(found) if found else None
    save_table(folder, "losses", rows)
    births = read_lines(folder / BIRTHS, up_to=step)
    if births:
        save_table(folder, "births", [{"series": folder.name, **row} for row in births])
    tokens = recipe.batch * recipe.accumulation * recipe.context
    # The median step: neither compiling nor saving is in it.
    typical = float(np.median([row["seconds"] for row in rows]))
    result = {
        "held_out": held_out,
        "seconds": seconds,
        "tokens": tokens * step,
        "tokens_per_second": tokens / max(typical, 1e-9),
        "dtype": dtype,
        "privacy": None if privacy is None else privacy._asdict(),
    }
    write_json(folder / RESULT, result)


@torch.no_grad()
def held_out_loss(session: Session) -> float:
    """Mean loss over the held-out windows, nats, not compiled."""
    model, windows = session.prepared.run, session.data.held_out()
    total = 0.0
    model.eval()
    with session.autocast():
        for ids in windows.split(session.recipe.batch):
            ids = ids.to(session.devices.device)
            total += float(model(ids, labels=ids).loss) * len(ids)
    model.train()
    return total / len(windows)
