"""The battery of several models, one after the other in memory, each beside the first."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from typing import Any

from skerry.errors import UnknownOption
from skerry.redesign.battery.battery import Battery, check_tasks, compare, run_battery
from skerry.run import Progress


def run_batteries(
    models: Sequence[Any],
    *,
    tokenizer: Any = None,
    text: Any = None,
    tasks: Iterable[str] | None = None,
    dtype: Any = None,
    device: Any = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> list[Battery]:
    """Load and test models; names and numbers of `run_battery`.

    Args:
        models: Folders, hub ids, .gguf files or built modules.
        tokenizer: For models that bring none.
        text: What is read; the built-in corpus by default.
        tasks: Names of tasks; all by default.
        dtype: Of the forward; as stored by default.
        device: Chosen by default.
        threads: CPU threads; chosen by default.
        trust_remote_code: Run code that a checkpoint ships.
        progress: Told how far it is.
        options: Others of `run_battery`.

    Raises:
        UnknownOption: No model, or a task that does not exist.
        SkerryError: Of loading and running.
    """
    if not models:
        raise UnknownOption("no model was named; name one or several: skerry battery MODEL MODEL ...")
    wanted = [task.name for task in check_tasks(tasks)]
    if isinstance(text, str):
        from skerry.corpus import read

        text = read(text)  # a wrong path is told before a model is loaded
    names = unique([_name(model) for model in models])
    return [
        _one(
            model,
            name,
            loading={
                "tokenizer": tokenizer,
                "dtype": dtype,
                "device": device,
                "trust_remote_code": trust_remote_code,
            },
            threads=threads,
            text=text,
            tasks=wanted,
            progress=progress,
            **options,
        )
        for model, name in zip(models, names, strict=True)
    ]


def _one(model: Any, name: str, *, loading: dict[str, Any], threads: int | None, **options: Any) -> Battery:
    import torch

    from skerry.anatomy import load
    from skerry.anatomy.threads import choose_threads

    loaded = load(model, **loading)
    torch.set_num_threads(choose_threads(loaded.num_parameters, requested=threads).value)
    found = run_battery(loaded.model, loaded.tokenizer, name=name, **options)
    del loaded
    gc.collect()
    return found


def _name(model: Any) -> str:
    return str(model) if isinstance(model, str) or not hasattr(model, "parameters") else type(model).__name__


def unique(names: Sequence[str]) -> list[str]:
    """Short names that differ: the last part of a path where that is enough, the whole one where not, else numbered."""
    short = [name.rstrip("/").rsplit("/", 1)[-1] or name for name in names]
    chosen = [s if short.count(s) == 1 else name for s, name in zip(short, names, strict=True)]
    return [
        name if chosen.count(name) == 1 else f"{name} ({chosen[: i + 1].count(name)})"
        for i, name in enumerate(chosen)
    ]


def document(found: Sequence[Battery]) -> dict[str, Any]:
    """One JSON document: every battery, and each beside the first."""
    from skerry.redesign.battery.battery import TASKS

    comparisons = [
        {
            "a": found[0].name,
            "b": other.name,
            "differences": [d.document() for d in compare(found[0], other)],
        }
        for other in found[1:]
    ]
    tasks = {name: {"what": task.what, "source": task.source} for name, task in TASKS.items()}
    return {
        "schema": 1,
        "tasks": tasks,
        "batteries": [b.document() for b in found],
        "comparisons": comparisons,
    }
