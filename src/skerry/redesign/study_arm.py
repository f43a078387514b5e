"""One arm of a study in a folder of its own: trained, measured, written down; the same call goes on where it was stopped.

arm.json       what is asked
training/      the training's folder (train_folder.py)
curve.jsonl    held-out loss and outliers at points of the training
result.json    everything measured; there when all is done
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from skerry.errors import BrokenRun, SkerryError
from skerry.redesign.births import Births
from skerry.redesign.recipe import Recipe
from skerry.redesign.study_measure import even_windows, headline, measure, window_losses
from skerry.redesign.study_plan import Arm, Measured, Plan
from skerry.run.files import replace_pointer
from skerry.run.progress import Progress

ASKED, CURVE, RESULT = "arm.json", "curve.jsonl", "result.json"
CURVE_WINDOWS = 64
"""Held-out windows of a point of the curve."""
CURVE_ROWS = 8
"""Of them, those on which outliers are read."""
# Seeds of the windows that calibrate: of no training.
_CALIBRATION_SEED = 2**31 - 1


def folder_of(place: Path, plan: Plan, arm: Arm) -> Path:
    """Where an arm is kept: its content is in the name, so another recipe never finds it."""
    return place / "arms" / f"{arm.name}-{plan.key(arm)[:10]}"


def ask(place: Path, plan: Plan, arm: Arm, *, text: Recipe, device: str | None, threads: int) -> Path:
    """Write down what an arm is; its folder.

    Args:
        place: Folder of the study.
        plan: The study.
        arm: The arm.
        text: A recipe with the text and tokenizer that were made ready.
        device: Where to train; chosen when None.
        threads: Of the CPU.
    """
    folder = folder_of(place, plan, arm)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(arm.recipe, text=text.text, tokenizer=text.tokenizer)
    asked = {
        "label": arm.label,
        "size": arm.size,
        "seed": arm.seed,
        "key": plan.key(arm),
        "recipe": recipe.plain(),
        "measured": plan.measured.plain(),
        "device": device,
        "threads": threads,
    }
    replace_pointer(folder / ASKED, (json.dumps(asked, indent=1) + "\n").encode())
    return folder


def result_of(folder: Path) -> dict[str, Any] | None:
    """What a finished arm gave; None while it is not finished.

    Raises:
        BrokenRun: The file is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise BrokenRun(f"{path} is damaged; delete it and give the same command again") from error


def run_arm(folder: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train and measure what `arm.json` asks for.

    A training whose loss is no longer finite is a result, too: a row with the reason and no numbers.

    Raises:
        SkerryError: As `train` says.
    """
    from skerry.errors import Diverged

    found = result_of(folder)
    if found is not None:
        return found
    asked = json.loads((folder / ASKED).read_text())
    start = time.perf_counter()
    try:
        result = _train_and_measure(folder, asked, progress)
    except Diverged as error:
        result = {"note": f"diverged: {error}", "curve": curve_of(folder)}
    mine = {k: asked[k] for k in ("label", "size", "seed", "key")}
    result = {**mine, **result, "seconds": time.perf_counter() - start}
    replace_pointer(folder / RESULT, json.dumps(result, allow_nan=False).encode())
    return result


def _train_and_measure(folder: Path, asked: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
    import torch

    from skerry.redesign.text import window_batch
    from skerry.redesign.train import train
    from skerry.redesign.train_data import Windows, load_data

    recipe = Recipe.from_plain(asked["recipe"])
    wanted = asked["measured"]
    measured = Measured(
        **{**wanted, "schemes": tuple(wanted["schemes"]), "sparsities": tuple(wanted["sparsities"])}
    )
    torch.set_num_threads(asked["threads"])
    data = load_data(recipe, None)
    points = set(points_of(recipe.steps, measured.points))
    windows = _windows(data, CURVE_WINDOWS, recipe)

    def look(step: int, loss: float, model: nn.Module) -> None:
        if step not in points:
            return
        losses = window_losses(model, windows)
        row = {"step": step, "loss": float(np.mean(losses)), "training_loss": loss}
        seen = Births(model, rows=CURVE_ROWS).measure(step, windows)
        row |= headline(seen)
        with (folder / CURVE).open("a") as file:
            file.write(json.dumps(row) + "\n")

    trained = train(
        recipe,
        folder / "training",
        progress=progress,
        device=asked["device"],
        threads=asked["threads"],
        on_step=look,
    )
    if isinstance(data, Windows):
        calibration = window_batch(
            data.train,
            count=measured.calibration,
            context=recipe.context,
            bos=data.bos,
            seed=_CALIBRATION_SEED,
            step=0,
        )
    else:
        calibration = data.batch(_CALIBRATION_SEED)[: measured.calibration]
    held_out = _windows(data, measured.windows, recipe)
    found = measure(
        trained.model, held_out, calibration, measured=measured, step=recipe.steps, progress=progress
    )
    if measured.battery:
        from skerry.redesign.battery.battery import run_battery

        battery = run_battery(
            trained.model, data.tokenizer, training_length=recipe.context, name=asked["label"]
        )
        found["battery"] = battery.document()
    return {
        **found,
        "curve": curve_of(folder),
        "losses": [round(float(x), 6) for x in trained.losses],
        "tokens_per_second": trained.tokens_per_second,
        "tokens": recipe.steps * recipe.batch * recipe.accumulation * recipe.context,
        "training_seconds": trained.seconds,
    }


def _windows(data: Any, count: int, recipe: Recipe) -> Any:
    from skerry.redesign.train_data import Windows

    if isinstance(data, Windows):
        return even_windows(data.rest, count, context=recipe.context, bos=data.bos)
    return data.held_out()[:count]


def points_of(steps: int, points: int) -> list[int]:
    """Steps at which the curve is read: evenly over the whole run, the last included, and a few early ones."""
    even = np.linspace(0, steps, points + 1)[1:].round().astype(int).tolist()
    early = [even[0] // 4, even[0] // 2] if points > 4 else []
    return sorted({s for s in [*early, *even] if s > 0})


def curve_of(folder: Path) -> list[dict[str, Any]]:
    """Points of the curve by step; of a step read twice (a training that went on) the later reading."""
    path = folder / CURVE
    rows: dict[int, dict[str, Any]] = {}
    for row in _lines(path.read_text().splitlines() if path.is_file() else []):
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _lines(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a killed process
            continue


def work(folder: str) -> None:
    """Be the process of one arm: `run_arm`, and a mistake in `error.json` for the process that asked.

    The other end of standard input is held by that process. When it ends, however it ends, so does this one, and the state of the training
    is saved first.
    """
    import _thread
    import signal
    import sys
    import threading

    def wait() -> None:
        sys.stdin.read()
        _thread.interrupt_main()

    # A shell in the background starts its children deaf to interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = Path(folder)
    (place / "error.json").unlink(missing_ok=True)
    threading.Thread(target=wait, daemon=True).start()
    try:
        run_arm(place)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        kind = type(error).__name__
        told = {"kind": kind, "is_ours": isinstance(error, SkerryError), "text": str(error)}
        replace_pointer(place / "error.json", json.dumps(told).encode())
        if not isinstance(error, SkerryError):
            raise
        sys.exit(1)
