"""One writer per run directory. The lock names its process, so that a killed one does not lock for ever."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from skerry.errors import RunExists


class Lock:
    """A file that only one living process holds."""

    def __init__(self, folder: Path) -> None:
        """For the run at `folder`, which is made when missing."""
        self.path = folder / "lock"

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunExists: Another living process has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": _start_of(os.getpid())})
        for _ in range(3):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._refuse_or_clear()
                continue
            with os.fdopen(handle, "w") as file:
                file.write(mine)
            return
        raise RunExists(f"{self.path.parent} is being written by another process")

    def release(self) -> None:
        """Give the lock back."""
        self.path.unlink(missing_ok=True)

    def _refuse_or_clear(self) -> None:
        try:
            holder = json.loads(self.path.read_text())
            pid, host, start = int(holder["pid"]), holder["host"], holder.get("start")
        except (OSError, ValueError, KeyError, TypeError):
            self.path.unlink(missing_ok=True)  # half a lock: its writer was killed while it wrote
            return
        here = host == socket.gethostname()
        if here and (pid == os.getpid() or _start_of(pid) != start):
            self.path.unlink(missing_ok=True)
            return
        raise RunExists(
            f"{self.path.parent} is being written by process {pid} on {host}; wait for it, or remove {self.path} if that process is gone"
        )


def _start_of(pid: int) -> str | None:
    """When a process started, so that a reused number is not taken for the old process; None when it does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return "alive"
    return "alive"
