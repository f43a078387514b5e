"""A full disk is noticed before the long work, as far as that can be foreseen."""

from __future__ import annotations

import shutil
from pathlib import Path

from skerry.errors import NoSpace


def check_space(path: Path, needed: int) -> None:
    """Refuse a disk with less room than a run is expected to take.

    Args:
        path: Where the run will be; need not exist.
        needed: Bytes.

    Raises:
        NoSpace: Less is free.
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpace(
            f"the run needs about {needed / 2**20:.0f} MB and the disk of {folder} has {free / 2**20:.0f} MB free; "
            "free some space or choose another place with --out"
        )
