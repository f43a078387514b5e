"""A repeated command is answered from its run, without loading the model.

What was asked is keyed by the files of the model and of the text as they are now (names, sizes, times of change), by the options and by
the versions of what computes. A run that was finished for the same key is the answer; its files are verified.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skerry.errors import SkerryError
from skerry.run.directory import POINTER, Run

_VERSIONS = ("skerry", "torch", "transformers")


def asked_key(model: Any, data: Any, options: Mapping[str, Any]) -> str | None:
    """Key of a request, or None when it cannot be told whether it would be the same again.

    Args:
        model: A local folder or file; anything else has no key.
        data: A local folder or file, literal text, or None for the built-in corpus.
        options: Plain values.
    """
    if not isinstance(model, (str, Path)) or not Path(model).exists():
        return None
    if data is not None and not isinstance(data, (str, Path)):
        return None
    text: Any = str(data)
    if data is not None and len(text) < 4096 and "\n" not in text and Path(data).exists():
        text = _fingerprint(Path(data))
    elif text.startswith("datasets:"):
        return None
    content = {
        "model": _fingerprint(Path(model)),
        "text": text,
        "options": {name: str(value) for name, value in options.items()},
        "versions": [version(name) for name in _VERSIONS] + [sys.version],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_repeat(key: str | None, places: Iterable[Path], stage: str) -> Run | None:
    """The run among `places` whose `stage` was finished for this key, if its files are whole.

    Raises:
        BrokenRun: That run is damaged.
    """
    for place in places:
        if key is None or not (place / POINTER).is_file():
            continue
        try:
            run = Run.open(place)
        except SkerryError:
            continue
        record = run.record.stages.get(stage)
        if record is not None and record.asked == key:
            for name, other in run.record.stages.items():
                run.finished(name, other.inputs)
            return run
    return None


def _fingerprint(path: Path) -> list[list[Any]]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[str(file.absolute()), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]
