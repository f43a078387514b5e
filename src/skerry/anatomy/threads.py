"""How many threads compute: a second one helps a large model on an idle machine and ruins a small one on a busy machine.

Threads meet at a barrier after every operation.  On a tiny model an operation takes microseconds, and a thread that must wait
for a core that another process holds makes all of them spin: 40 to 300 times slower has been measured on two cores.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from skerry.choices import Choice
from skerry.errors import UnknownOption

# Work below which a thread costs more than it brings: a forward of 2 GFLOP is some 30 ms on one core, in about a hundred
# operations of 0.3 ms; the barriers of one more thread cost about a tenth of that when idle.
FLOPS_PER_THREAD = 2e9
# A share of a core so small that it does not count as busy: background chatter of a machine.
NEGLIGIBLE_LOAD = 0.35


def choose_threads(
    num_parameters: int, *, tokens_per_forward: int = 2048, requested: int | None = None
) -> Choice[int]:
    """Threads for torch.

    Args:
        num_parameters: Size of the model; a forward takes about two operations per parameter and token.
        tokens_per_forward: Tokens of a batch.
        requested: What the user wants; taken as it is.

    Raises:
        UnknownOption: Fewer than one requested.
    """
    cores = usable_cores()
    if requested is not None:
        if requested < 1:
            raise UnknownOption(f"threads={requested}: at least 1 is needed")
        return Choice(requested, f"asked for; {cores} cores are usable")
    fixed = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if fixed.isdigit() and int(fixed) > 0:
        return Choice(int(fixed), "OMP_NUM_THREADS says so")
    if cores == 1:
        return Choice(1, "one core is usable")
    busy = min(float(cores), busy_cores())
    by_work = max(1, int(2.0 * num_parameters * tokens_per_forward / FLOPS_PER_THREAD))
    by_load = max(1, math.floor(cores - busy + NEGLIGIBLE_LOAD))
    threads = min(cores, by_work, by_load)
    facts = f"{_millions(num_parameters)} parameters and {busy:.1f} of {cores} cores busy"
    if threads == cores:
        return Choice(threads, f"{facts}: every core helps")
    what = "a second thread costs" if threads == 1 else "more threads cost"
    return Choice(threads, f"{facts}: {what} more than {'it brings' if threads == 1 else 'they bring'}")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return max(1, min(cores, _quota()))


def busy_cores() -> float:
    """Cores that other processes keep busy: the load of the last minute without our own share of it."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # unknown: assume an idle machine
        return 0.0
    return max(0.0, load - own_load(time.process_time(), _age()))


def own_load(seconds_used: float, age: float | None) -> float:
    """Our share of the one-minute load average, which forgets with a time constant of 60 s.

    Args:
        seconds_used: Processor time that this process has used.
        age: Seconds since it started; None when unknown.
    """
    if age is None:
        return min(1.0, seconds_used / 60.0)
    return seconds_used / max(age, 1e-3) * (1.0 - math.exp(-age / 60.0))


def _age() -> float | None:
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Whole cores that the container's quota allows; a large number where there is none."""
    try:
        quota, period = path.read_text().split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return 1 << 16


def _millions(count: int) -> str:
    return (
        f"{count / 1e6:.1f} M"
        if count < 1e7
        else f"{count / 1e6:,.0f} M"
        if count < 1e9
        else f"{count / 1e9:.1f} G"
    )
