"""Which attention should be trained, and what does that cost? Variants x seeds x sizes, trained, measured and compared.

    done = run_study(make_plan("laptop"), "runs/attention")
    done.document["quantities"]

The folder is a run: `run.json`, tables and `study.json`, with every training in `arms/`. What is there already is not done again: a study
that was stopped goes on, one with another variant, seed or size beside those that are there trains only that one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.anatomy.threads import usable_cores
from skerry.choices import Choice
from skerry.errors import UnknownOption
from skerry.redesign.recipe import Recipe
from skerry.redesign.study_plan import Plan
from skerry.run import POINTER, Progress, Run, Silent

if TYPE_CHECKING:
    import pyarrow as pa

STUDIES = {"attention": "attention variants x seeds x sizes: loss, outliers, what compression costs, speed"}
DOCUMENT = "study.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Studied:
    """A finished study.

    Attributes:
        run: Its directory.
        document: Everything that its faces show.
    """

    run: Run
    document: dict[str, Any]

    def __repr__(self) -> str:
        d = self.document
        return f"<Study of {len(d['labels'])} variants, {len(d['seeds'])} seeds, at {self.run.path}: .document, .run.table('study_quantities')>"


def run_study(
    plan: Plan,
    out: str | Path,
    *,
    processes: int | None = None,
    threads: int = 1,
    device: str | None = None,
    ray: str | None = None,
    measure_speed: bool = True,
    progress: Progress | None = None,
) -> Studied:
    """Do what is missing of a study, and read the rest.

    Args:
        plan: The study.
        out: Its folder.
        processes: Trainings at once: one for each core, or GPU, when None.
        threads: CPU threads of each.
        device: Where to train; chosen when None.
        ray: Address of a Ray cluster, `auto`, or `local`; processes of this machine when None.
        measure_speed: Compare the speed of training.
        progress: Told how far it is.

    Raises:
        RunExists: The folder holds another study, with the difference.
        StudyIncomplete: Some trainings could not be finished; the others are kept.
        SkerryError: As `train` says, before anything is trained.
        KeyboardInterrupt: Ctrl-C; finished trainings are kept, the others go on from where they were.
    """
    place, progress = Path(out), progress or Silent()
    _check(processes=processes, threads=threads)
    key = plan.whole_key()
    if (place / POINTER).is_file() and (run := Run.open(place)).finished("study", key):
        return Studied(run, json.loads(run.text(DOCUMENT)))
    from skerry.redesign.study_text import prepare_text

    at_once = _processes(processes, device, ray)
    facts = {"command": sys.argv, "processes": str(at_once), "threads": threads, "ray": ray, **_versions()}
    started = time.perf_counter()
    with Run.begin(place, plan.request(), facts) as run:
        texts = {
            size: prepare_text(next(a.recipe for a in plan.arms if a.size == size), place)
            for size in plan.sizes
        }
        speed = _speed(run, plan, texts, key, device, progress) if measure_speed else []
        folders = _arms(
            plan,
            place,
            texts,
            speed,
            at_once=at_once,
            threads=threads,
            device=device,
            ray=ray,
            progress=progress,
        )
        document, tables = summarise(plan, folders, speed, place=place)
        run.finish(
            "study",
            key,
            tables=tables,
            texts={DOCUMENT: json.dumps(document, allow_nan=False)},
            seconds=time.perf_counter() - started,
        )
    return Studied(run, document)


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UnknownOption(f"--{name} is {value}; it must be at least 1")


def _processes(asked: int | None, device: str | None, ray: str | None) -> Choice[int]:
    gpus = _gpus(device)
    if ray is not None:
        return Choice(1, "a Ray cluster decides")
    if asked is not None:
        return Choice(asked, "asked for")
    if gpus:
        return Choice(len(gpus), f"one for each of {len(gpus)} GPUs")
    cores = usable_cores()
    return Choice(
        cores, f"one for each of {cores} cores: two small trainings side by side beat one with two threads"
    )


def _gpus(device: str | None) -> list[str]:
    """Numbers of the GPUs to spread over; none where the user names a device."""
    import torch

    if device not in (None, "cuda") or not torch.cuda.is_available():
        return []
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",") if shown else [str(i) for i in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {
        "platform": platform.platform(),
        **{name: version(name) for name in ("skerry", "torch", "transformers")},
    }


def _speed(
    run: Run, plan: Plan, texts: Mapping[str, Recipe], key: str, device: str | None, progress: Progress
) -> list[Row]:
    from skerry.redesign.study_speed import speeds
    from skerry.run.tables import from_rows

    if not run.finished("speed", key):
        start = time.perf_counter()
        rows = speeds(plan, texts, device=device, progress=progress)
        run.finish(
            "speed",
            key,
            tables={"study_speed": from_rows("study_speed", rows)},
            seconds=time.perf_counter() - start,
        )
    return run.table("study_speed").to_pylist()


def _arms(
    plan: Plan,
    place: Path,
    texts: Mapping[str, Recipe],
    speed: Sequence[Row],
    *,
    at_once: Choice[int],
    threads: int,
    device: str | None,
    ray: str | None,
    progress: Progress,
) -> list[Path]:
    from skerry.redesign.study_arm import ask, folder_of, result_of
    from skerry.redesign.study_engine import run_local, run_ray
    from skerry.redesign.study_speed import estimate

    left = [a for a in plan.arms if result_of(folder_of(place, plan, a)) is None]
    if left:
        told = f"{len(left)} of {len(plan.arms)} trainings to do, {at_once.value} at once ({at_once.why})"
        if speed:
            seconds = estimate(speed, plan, processes=at_once.value, left=[(a.label, a.size) for a in left])
            told += f"; about {_duration(seconds)} at the speed of this moment"
        progress.note(told)
    folders = [ask(place, plan, a, text=texts[a.size], device=device, threads=threads) for a in plan.arms]
    if ray is not None:
        gpus = 1.0 if _gpus(device) else 0.0
        run_ray(folders, address=ray, threads=threads, gpus=gpus, progress=progress)
    else:
        run_local(folders, processes=at_once.value, threads=threads, devices=_gpus(device), progress=progress)
    return folders


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summarise(
    plan: Plan, folders: Sequence[Path], speed: Sequence[Row], *, place: Path
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """The document and the tables of arms that are finished.

    Args:
        plan: The study.
        folders: Of its arms, in their order; unfinished ones are left out.
        speed: Rows of `study_speed`.
        place: Folder of the study.
    """
    from skerry.redesign.study_arm import result_of
    from skerry.redesign.study_document import study_document
    from skerry.redesign.study_rows import study_rows
    from skerry.run.tables import from_rows

    results = [
        {**result, "folder": str(folder.relative_to(place))}
        for folder in folders
        if (result := result_of(folder)) is not None
    ]
    rows = study_rows(results, baseline=plan.baseline, speed=speed)
    return study_document(plan, rows, results, run=place), {
        name: from_rows(name, r) for name, r in rows.items()
    }
