"""A folder that appears whole or not at all.

Everything is written into a hidden sibling, `.NAME.writing-PID`, checked there, and renamed in one step.  An error or Ctrl-C removes the
sibling; a process that is killed leaves only the hidden name, and the next export to the same place removes it once its process is gone.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skerry.errors import NoSpace, RunExists
from skerry.run.files import sync_folder

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAYS_FULL = ("No space left", "Disk quota", "File too large")
# Folders that this process writes at the moment; a hidden folder with our number that is not here was left by an older process.
_writing: set[Path] = set()


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Give a hidden folder to write into; it gets its name when the block ends well and is removed when it does not.

    Args:
        out: The folder that shall appear; it may exist if it is empty.

    Raises:
        RunExists: The name is in use.
        NoSpace: The disk is full; nothing is left behind.
    """
    out = out.resolve()
    check_unused(out)
    _clear_abandoned(out)
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
    try:
        _writing.add(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        _sync_files(temporary)
        check_unused(out)  # another process may have been faster
        temporary.replace(out)
        sync_folder(out.parent)
    except Exception as error:
        if is_full(error):
            raise _no_space(out) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _writing.discard(temporary)


def check_unused(out: Path) -> None:
    """Refuse a name that is in use.

    Raises:
        RunExists: A file, or a folder that is not empty.
    """
    if out.is_dir():
        names = sorted(p.name for p in out.iterdir())
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise RunExists(
                f"{out} is not empty (it has {some}); an export never overwrites: give an empty or new folder with --out"
            )
    elif out.exists() or out.is_symlink():
        raise RunExists(f"{out} is a file; --out must name a folder")


def is_full(error: BaseException) -> bool:
    """Whether a disk without room is the reason, also where a library has wrapped the system's error."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    cause = error.__cause__ or error.__context__
    return any(words in str(error) for words in _SAYS_FULL) or (cause is not None and is_full(cause))


def _no_space(out: Path) -> NoSpace:
    free = shutil.disk_usage(out.parent).free
    return NoSpace(
        f"no space left on the disk of {out.parent} ({free / 2**20:.0f} MB free); nothing was left behind: free some space and give the "
        "same command again, or choose another place with --out"
    )


def _clear_abandoned(out: Path) -> None:
    """Remove what killed processes left behind; folders of living ones stay."""
    if not out.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(out.name)}\.writing-(\d+)")
    for path in out.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and path not in _writing and not _is_another(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_another(pid: int) -> bool:
    """Whether a process of that number runs and is not this one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
