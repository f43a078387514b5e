"""Files of token ids, mapped into memory and never read whole: `.npy`, or raw `.bin` as nanoGPT and others write it.

A `.bin` has no header. Its ids are uint16 unless a file of the same name with `.json` beside it says otherwise: {"dtype": "uint32"}.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from skerry.errors import BadTokens

SUFFIXES = (".npy", ".bin")
_CHUNK = 1 << 24


def is_token_file(text: str | Path | None) -> bool:
    """Whether a recipe's text names a token file."""
    return text is not None and Path(text).suffix.lower() in SUFFIXES


def open_tokens(path: str | Path) -> np.ndarray:
    """The ids, one axis, mapped into memory.

    Raises:
        BadTokens: Not there, empty, no integers, more than one axis, or a damaged header.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BadTokens(f"there is no token file {str(path)!r}")
    try:
        ids = np.load(path, mmap_mode="r") if path.suffix.lower() == ".npy" else _raw(path)
    except (ValueError, EOFError, OSError) as error:
        raise BadTokens(f"{path} cannot be read as token ids: {error}") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise BadTokens(
            f"{path} holds {ids.dtype} of shape {list(ids.shape)}; one axis of integers is expected"
        )
    if not len(ids):
        raise BadTokens(f"{path} is empty; it must hold token ids")
    return ids


def _raw(path: Path) -> np.ndarray:
    beside = path.with_suffix(".json")
    named = json.loads(beside.read_text()).get("dtype", "uint16") if beside.is_file() else "uint16"
    dtype = np.dtype(str(named))
    if path.stat().st_size % dtype.itemsize:
        raise BadTokens(
            f"{path} has {path.stat().st_size:,} bytes, no whole number of {dtype} ids; name the dtype in {beside.name}"
        )
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def check_ids(ids: np.ndarray, vocabulary: int, path: str | Path) -> None:
    """Refuse ids that no embedding has a row for; reads the file once, in pieces.

    Raises:
        BadTokens: With the first such id and its place.
    """
    for start in range(0, len(ids), _CHUNK):
        piece = np.asarray(ids[start : start + _CHUNK])
        if int(piece.max()) >= vocabulary or int(piece.min()) < 0:
            place = start + int(np.argmax((piece >= vocabulary) | (piece < 0)))
            raise BadTokens(
                f"{path} holds the id {int(ids[place])} at place {place:,}, and the vocabulary has {vocabulary} tokens "
                f"(0 to {vocabulary - 1}); give a vocabulary of more than {int(ids[place])}, or the file's own tokenizer"
            )


def tokens_key(ids: np.ndarray) -> str:
    """SHA-256 of the ids as little-endian int64, so that a copy in another dtype has the same key."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), _CHUNK):
        digest.update(np.asarray(ids[start : start + _CHUNK]).astype("<i8").tobytes())
    return digest.hexdigest()
