"""Files that are written once: the name holds the content key, the content never changes, a reader never sees half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from skerry.errors import BrokenRun, NoSpace

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def hash_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_once(folder: Path, stem: str, suffix: str, write: Callable[[Path], object]) -> tuple[str, str]:
    """Write a file under a name that holds its content key.

    Args:
        folder: Where; created when missing.
        stem: First part of the name.
        suffix: Last part, with the dot.
        write: Writes the content to the path that it is given.

    Returns:
        Name and SHA-256 of the file.

    Raises:
        NoSpace: The disk is full; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix=suffix, dir=folder)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        _sync(temporary)
        digest = hash_of(temporary)
        final = folder / f"{stem}-{digest[:16]}{suffix}"
        temporary.replace(final)
        temporary = None
        sync_folder(folder)
    except OSError as error:
        if error.errno in _FULL or _is_full(folder, error):
            raise no_space(folder) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return final.name, digest


def replace_pointer(path: Path, content: bytes) -> None:
    """Replace the one small file that may change, atomically.

    Raises:
        NoSpace: The disk is full; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise no_space(path.parent) from error
        raise


def verify(path: Path, digest: str) -> None:
    """Refuse a file that is not what it was when it was written.

    Raises:
        BrokenRun: It is missing or damaged.
    """
    if not path.is_file():
        raise BrokenRun(f"{path} is missing from the run; delete the run's folder and measure again")
    if hash_of(path) != digest:
        raise BrokenRun(
            f"{path} is damaged: its content does not match its key; delete the run's folder and measure again"
        )


def no_space(folder: Path) -> NoSpace:
    """The error for a full disk."""
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    return NoSpace(
        f"no space left on the disk of {folder} ({free / 2**20:.0f} MB free); the run so far is kept: free some space and "
        "give the same command again, or choose another place with --out"
    )


def _is_full(folder: Path, error: OSError) -> bool:
    """Arrow wraps the system's error; its text still names it."""
    return "No space left" in str(error) or "Disk quota" in str(error)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
