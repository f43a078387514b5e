"""Compiles the kernels, keeps the result in the user's cache, and decides who uses them.

SKERRY_KERNEL = auto (default), c (demand the kernels, compile now), torch (never use them).
Under auto a cached library is used at once; without one the plain path works until so much has been read that a compilation (about
two seconds) is small beside it. So a small scan never waits for a compiler, and where there is none everything still works.
Threads: the library is built with OpenMP but not linked to a runtime of its own; it takes the symbols of the one that torch has
loaded and so shares torch's pool of threads. Where that fails it is built for one thread.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from skerry.errors import KernelUnavailable, UnknownOption

COMPILE_AFTER = 100_000_000
"""Elements that the plain path reads (a few seconds of work) before it is worth compiling the kernels."""
_SOURCES = ("activation.c", "attention.c", "weight.c")
_HEADERS = ("common.h",)
_COMMON = ("-std=gnu11", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
# From best to most portable; the first that compiles and loads is taken.
_FLAGS = (
    ("-O3", "-march=native", "-fopenmp"),
    ("-O3", "-march=native"),
    ("-O2",),
)


@dataclass(frozen=True)
class Prepared:
    """How the kernels came to be.

    Attributes:
        path: "c" or "torch": who reads from now on.
        seconds: Wall time of compiling; 0 when nothing was compiled.
        was_cached: Whether a library of an earlier run was used.
        why: The reason, in words.
    """

    path: str
    seconds: float
    was_cached: bool
    why: str


@dataclass(frozen=True)
class Library:
    """A loaded library.

    Attributes:
        functions: The C functions.
        is_parallel: Whether it may run on several threads.
    """

    functions: ctypes.CDLL
    is_parallel: bool

    def threads(self, work: int) -> int:
        """Threads for reading so many elements; a thread is not worth waking for a few thousand."""
        return max(1, min(torch.get_num_threads(), work // 16384)) if self.is_parallel else 1


class _Status:
    """What this process knows about the kernels."""

    def __init__(self) -> None:
        self.library: Library | None = None
        self.prepared: Prepared | None = None
        self.failed = ""
        self.missing = False
        self.plain_work = 0


_status = _Status()


def library(work: int) -> Library | None:
    """The kernels, or None when the plain path shall read.

    Args:
        work: How many elements are about to be read.

    Raises:
        KernelUnavailable: SKERRY_KERNEL=c, and they cannot be built.
    """
    mode = _mode()
    if mode == "torch":
        return None
    if _status.library is not None:
        return _status.library
    if mode == "c":
        prepare(COMPILE_AFTER)
        if _status.library is None:
            raise KernelUnavailable(f"SKERRY_KERNEL=c demands the compiled kernels, but {_status.failed}")
        return _status.library
    if _status.failed:
        return None
    _status.plain_work += work
    if not _status.missing or _status.plain_work > COMPILE_AFTER:
        prepare(_status.plain_work)
    return _status.library


def prepare(work: int = COMPILE_AFTER + 1) -> Prepared:
    """Load the kernels from the cache, or compile them if the work ahead is worth it.

    Args:
        work: How many elements are to be read in all.

    Returns:
        Who reads from now on, and what it cost to find out.
    """
    mode = _mode()
    if mode == "torch":
        return Prepared("torch", 0.0, False, "SKERRY_KERNEL=torch")
    if _status.library is not None and _status.prepared is not None:
        return _status.prepared
    if _status.failed:
        return Prepared("torch", 0.0, False, _status.failed)
    compiler = _compiler()
    if compiler is None:
        _status.failed = "there is no C compiler (cc, gcc or clang) on the PATH"
        return Prepared("torch", 0.0, False, _status.failed)
    loaded = _from_cache(compiler)
    if loaded is not None:
        _status.library, _status.prepared = loaded, Prepared("c", 0.0, True, "kernels of an earlier run")
        return _status.prepared
    _status.missing = True
    if work <= COMPILE_AFTER and mode != "c":
        return Prepared("torch", 0.0, False, "the work is too small to wait for a compiler")
    return _compile(compiler)


def _compile(compiler: str) -> Prepared:
    start = time.perf_counter()
    for flags in _FLAGS:
        try:
            path = _build(compiler, flags)
            _status.library = _load(path, flags)
        except (OSError, subprocess.SubprocessError) as error:
            _status.failed = f"{compiler} {' '.join(flags)} failed: {_reason(error)}"
            continue
        seconds = time.perf_counter() - start
        _status.failed = ""
        _status.prepared = Prepared("c", seconds, False, f"compiled by {compiler}")
        return _status.prepared
    return Prepared("torch", time.perf_counter() - start, False, _status.failed)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[0] if lines else str(error)
    return str(error)


def _mode() -> str:
    mode = os.environ.get("SKERRY_KERNEL") or "auto"
    if mode not in ("auto", "c", "torch"):
        raise UnknownOption(f"SKERRY_KERNEL={mode!r} is not known; it takes auto, c or torch")
    return mode


def _compiler() -> str | None:
    named = os.environ.get("CC", "").split()
    return next((found for name in (*named[:1], "cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _from_cache(compiler: str) -> Library | None:
    for flags in _FLAGS:
        path = cache_folder() / _name(compiler, flags)
        if path.is_file():
            try:
                return _load(path, flags)
            except OSError:
                continue
    return None


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "skerry" / "kernels"


def _name(compiler: str, flags: tuple[str, ...]) -> str:
    parts = [
        *(_source(n) for n in (*_SOURCES, *_HEADERS)),
        repr((_COMMON, flags)),
        _version(compiler),
        _machine(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + ".so"


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@lru_cache(maxsize=4)
def _version(compiler: str) -> str:
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.decode(errors="replace")


@lru_cache(maxsize=1)
def _machine() -> str:
    """What `-march=native` depends on: a home folder may be shared by machines of different kinds."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(
        sorted(set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)))
    )


def _build(compiler: str, flags: tuple[str, ...]) -> Path:
    """Compile into the cache; a half-written library is never visible under its name."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder))
    except OSError:  # a read-only home: build for this process alone
        folder = work = Path(tempfile.mkdtemp(prefix="skerry-kernels-"))
    try:
        here = Path(__file__).parent
        objects = []
        for name in _SOURCES:
            objects.append(str(work / name) + ".o")
            _run([compiler, *_COMMON, *flags, "-c", str(here / name), "-o", objects[-1]])
        # Linked without -fopenmp: its symbols come from the runtime that torch has loaded.
        made = work / "kernels.so"
        _run([compiler, "-shared", "-fPIC", *objects, "-o", str(made), "-lm"])
        path = folder / _name(compiler, flags)
        made.replace(path)
        return path
    finally:
        if work != folder:
            shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, timeout=120, check=True)


def _load(path: Path, flags: tuple[str, ...]) -> Library:
    is_parallel = "-fopenmp" in flags
    if is_parallel:
        _share_openmp()
    return Library(ctypes.CDLL(str(path), mode=os.RTLD_NOW), is_parallel)


def _share_openmp() -> None:
    """Make the symbols of torch's OpenMP runtime visible to the library."""
    torch_folder = Path(torch.__file__).parent
    found = [
        *torch_folder.glob("lib/libgomp*.so*"),
        *torch_folder.parent.glob("torch.libs/libgomp*.so*"),
        *_mapped(),
    ]
    for path in found:
        try:
            ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
            return
        except OSError:
            continue
    raise OSError("torch has loaded no libgomp whose threads could be shared")


def _mapped() -> list[str]:
    try:
        text = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return sorted(set(re.findall(r"/\S*/libgomp[^\s/]*", text)))
