"""The state from which a training goes on bit for bit: weights, moments, random state, step; one file that is whole or not there.

A state is written under another name, synced, then renamed to a name that holds its step and the beginning of its SHA-256: a process
killed at any moment, or a full disk, leaves the earlier states as they were, and a damaged file is noticed and passed over.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from skerry.errors import BrokenRun
from skerry.run.files import hash_of, write_once

KEPT = 2
_NAME = re.compile(r"state-(\d+)-([0-9a-f]{16})\.pt")


class State(NamedTuple):
    """A state that was read.

    Attributes:
        step: Optimiser steps done.
        content: What was saved.
        passed_over: Newer states that are damaged.
    """

    step: int
    content: dict[str, Any]
    passed_over: tuple[str, ...]


def save_state(folder: Path, step: int, content: dict[str, Any], *, keep: int = KEPT) -> Path:
    """Write a state, then remove all but the newest `keep`.

    Args:
        folder: Of the states; made when missing.
        step: Optimiser steps done.
        content: Tensors, numbers, strings, lists and mappings of them.
        keep: States that stay.

    Raises:
        NoSpace: The disk is full; earlier states are as they were.
    """
    _sweep(folder)
    name, _ = write_once(folder, f"state-{step:08d}", ".pt", lambda path: torch.save(content, path))
    for old in sorted(_states(folder))[:-keep]:
        old.unlink(missing_ok=True)
    return folder / name


def load_state(folder: Path, *, device: Any = "cpu") -> State | None:
    """The newest state that is whole; None when there is none at all.

    Raises:
        BrokenRun: There are states, and all of them are damaged.
    """
    damaged: list[str] = []
    for path in sorted(_states(folder), reverse=True):
        match = _NAME.fullmatch(path.name)
        assert match is not None
        if hash_of(path)[:16] != match[2]:
            damaged.append(path.name)
            continue
        return State(int(match[1]), torch.load(path, map_location=device, weights_only=True), tuple(damaged))
    if damaged:
        raise BrokenRun(
            f"all states of the training in {folder.parent} are damaged ({', '.join(damaged)}); delete the folder and train again"
        )
    return None


def _states(folder: Path) -> list[Path]:
    return [p for p in folder.glob("state-*.pt") if _NAME.fullmatch(p.name)] if folder.is_dir() else []


def _sweep(folder: Path) -> None:
    """Remove what killed writers left."""
    for left in folder.glob(".writing-*"):
        left.unlink(missing_ok=True)
