"""Runs arms side by side: each in a process of this machine with threads of its own, or as a task of a Ray cluster.

A process is told by a file what to do and leaves its result in a file, so nothing is lost when this one ends: finished arms are kept, and
a training that was stopped goes on from its last state when the study is asked for again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from skerry.errors import MissingExtra, SkerryError, StudyIncomplete, UnknownOption
from skerry.redesign.study_arm import ASKED, result_of, run_arm, work
from skerry.run.progress import Progress, Silent

POLL = 1.0
"""Seconds between two looks at the processes."""
PATIENCE = 60.0
"""Seconds that a process is given to save its state."""
Told = Callable[[Path], None]


def run_local(
    folders: Sequence[Path],
    *,
    processes: int,
    threads: int,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
    told: Told = lambda _folder: None,
) -> None:
    """Finish every arm that is not finished yet.

    Args:
        folders: What `study_arm.ask` gave.
        processes: At once.
        threads: Of each.
        devices: Numbers of the GPUs; each process sees one of them, in turn.
        progress: Told how many steps are done.
        told: Told every arm that is finished.

    Raises:
        StudyIncomplete: With the mistakes; finished arms are kept.
        KeyboardInterrupt: After every process has saved its state.
    """
    waiting = [f for f in folders if result_of(f) is None]
    steps = _Steps(waiting, progress or Silent())
    running: dict[Path, _Process] = {}
    failed: dict[Path, str] = {}
    free = list(devices)
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                device = free.pop(0) if free else None
                folder = waiting.pop(0)
                running[folder] = _Process(folder, threads=threads, device=device)
            time.sleep(POLL)
            steps.look()
            for folder, process in list(running.items()):
                if process.popen.poll() is None:
                    continue
                del running[folder]
                process.close()
                if process.device is not None:
                    free.append(process.device)
                if result_of(folder) is None:
                    failed[folder] = process.mistake()
                else:
                    told(folder)
    finally:
        for process in running.values():
            process.stop()
        steps.done()
    if failed:
        raise StudyIncomplete(_words(failed, len(folders)))


def _words(failed: dict[Path, str], total: int) -> str:
    first, why = next(iter(failed.items()))
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return (
        f"{len(failed)} of {total} arms could not be finished; the others are kept. {first.name}{more}: {why}"
    )


class _Process:
    """One arm in a process of its own."""

    def __init__(self, folder: Path, *, threads: int, device: str | None) -> None:
        self.folder, self.device = folder, device
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        code = f"from {work.__module__} import work; work({str(folder)!r})"
        self._log: IO[bytes] = (folder / "log.txt").open("ab")
        # Ctrl-C of a terminal reaches its whole group; in a session of its own the arm hears of it from us, once.
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )

    def close(self) -> None:
        """Let go of its pipes; the process hears that as a wish to stop."""
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        self._log.close()

    def stop(self) -> None:
        """End it after it has saved its state."""
        self.close()
        try:
            self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def mistake(self) -> str:
        """What it said before it ended."""
        path = self.folder / "error.json"
        if not path.is_file():
            return f"its process ended with code {self.popen.returncode}; see {self.folder / 'log.txt'}"
        told = json.loads(path.read_text())
        return (
            told["text"]
            if told["is_ours"]
            else f"{told['kind']}: {told['text']}; see {self.folder / 'log.txt'}"
        )


class _Steps:
    """How many steps of all arms are done, from the files that they write."""

    def __init__(self, folders: Sequence[Path], progress: Progress) -> None:
        self.progress, self.done_steps = progress, 0
        self.folders = list(folders)
        self.total = {f: int(json.loads((f / ASKED).read_text())["recipe"]["steps"]) for f in folders}
        if folders:
            progress.start("training and measuring", sum(self.total.values()), "step")

    def look(self) -> None:
        """Tell of new steps."""
        now = sum(self._steps(f) for f in self.folders)
        if now > self.done_steps:
            self.progress.advance(now - self.done_steps)
            self.done_steps = now

    def _steps(self, folder: Path) -> int:
        if result_of(folder) is not None:
            return self.total[folder]
        try:
            with (folder / "training" / "losses.jsonl").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, ValueError, IndexError, KeyError):
            return 0

    def done(self) -> None:
        """No more."""
        if self.folders:
            self.progress.done()


def run_ray(
    folders: Sequence[Path],
    *,
    address: str,
    threads: int,
    gpus: float = 0.0,
    progress: Progress | None = None,
    told: Told = lambda _folder: None,
) -> None:
    """The same as tasks of a Ray cluster; the study's folder must be one that all its machines see.

    Args:
        folders: What `study_arm.ask` gave.
        address: Of the cluster, `auto`, or `local` for one that is started here.
        threads: Cores of each task.
        gpus: GPUs of each task.
        progress: Told how many steps are done.
        told: Told every arm that is finished.

    Raises:
        MissingExtra: Ray is not installed.
        UnknownOption: No cluster answers at the address.
        StudyIncomplete: As `run_local`.
    """
    ray = _ray()
    waiting = [f for f in folders if result_of(f) is None]
    if not waiting:
        return
    try:
        ray.init(
            address=None if address == "local" else address, log_to_driver=False, include_dashboard=False
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UnknownOption(f"no Ray cluster answers at {address!r}: {str(error).splitlines()[0]}") from error
    steps = _Steps(waiting, progress or Silent())
    failed: dict[Path, str] = {}
    try:
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_task)
        pending: dict[Any, Path] = {task.remote(str(f.absolute())): f for f in waiting}
        while pending:
            ready, _ = ray.wait(list(pending), timeout=POLL)
            steps.look()
            for reference in ready:
                folder = pending.pop(reference)
                try:
                    why = ray.get(reference)
                except Exception as error:  # of the cluster: a lost machine, a killed worker
                    why = str(error).strip().splitlines()[-1]
                if why is None and result_of(folder) is None:
                    why = f"it finished elsewhere, and {folder} does not show it: all machines must see this folder"
                if why is None:
                    told(folder)
                else:
                    failed[folder] = why
    finally:
        ray.shutdown()
        steps.done()
    if failed:
        raise StudyIncomplete(_words(failed, len(folders)))


def _task(folder: str) -> str | None:
    """On a machine of the cluster; the mistake in words, or None."""
    try:
        run_arm(Path(folder))
    except SkerryError as error:
        return str(error)
    return None


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra('a cluster needs Ray: pip install "skerry[ray]"') from error
    return ray
