"""Looks at the files of a checkpoint before anything is loaded: seconds of reading instead of minutes of loading and a stack trace.

Everything here reads JSON and the first bytes of weight files, never a weight.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.errors import BrokenModel, RemoteCodeRefused, near_matches

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_FOREIGN = ("*.gguf", "*.h5", "*.msgpack", "*.pt", "*.pth", "*.ckpt", "*.onnx", "*.bin", "*.safetensors")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model", "tekken.json")
_MAX_HEADER = 100_000_000  # the limit of the format


@dataclass(frozen=True)
class Checkpoint:
    """What the files of a model say.

    Attributes:
        folder: Where they are.
        config: config.json.
        files: Weight files, in the order of their names.
        kind: `safetensors` or `pickle`.
        dtype: Type of most stored bytes, in the words of safetensors (`F16`); None for pickles, which are not opened here.
        num_bytes: Size of all weight files.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    kind: str
    dtype: str | None
    num_bytes: int

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder has files of a tokenizer."""
        return has_tokenizer(self.folder)


def inspect(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Check a folder.

    Raises:
        BrokenModel: No config.json, no weights, a file that is missing, truncated or no JSON, a model type that nobody knows.
        RemoteCodeRefused: The model needs code of its own.
    """
    config = read_config(folder / "config.json")
    check_config(config, str(folder), trust_remote_code=trust_remote_code)
    files = _weight_files(folder)
    if files[0].suffix != ".safetensors":
        for path in files:
            _check_pickle(path)
        return Checkpoint(folder, config, files, "pickle", None, sum(p.stat().st_size for p in files))
    sizes: Counter[str] = Counter()
    for path in files:
        for entry in read_header(path).values():
            sizes[entry["dtype"]] += entry["data_offsets"][1] - entry["data_offsets"][0]
    floats = {d: n for d, n in sizes.items() if d.startswith(("F", "BF"))}
    dtype = max(floats, key=floats.__getitem__) if floats else None
    return Checkpoint(folder, config, files, "safetensors", dtype, sum(p.stat().st_size for p in files))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER)


def read_config(path: Path) -> dict[str, Any]:
    """config.json as an object.

    Raises:
        BrokenModel: Not there, no JSON, no object.
    """
    if not path.is_file():
        raise BrokenModel(_no_config(path.parent))
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BrokenModel: Not readable, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise BrokenModel(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenModel(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(value, dict):
        raise BrokenModel(f"{path} holds a {type(value).__name__}; an object is expected")
    return value


def check_config(config: dict[str, Any], name: str, *, trust_remote_code: bool) -> None:
    """Refuse a config that transformers cannot build a model from.

    Raises:
        RemoteCodeRefused: The model type is unknown and the checkpoint ships code.
        BrokenModel: No model type, or an unknown one.
    """
    import transformers
    from transformers.models.auto.configuration_auto import (  # type: ignore[attr-defined]
        CONFIG_MAPPING,
        CONFIG_MAPPING_NAMES,
    )

    model_type = config.get("model_type")
    # What was registered from outside of transformers is in the mapping and not among the names.
    if model_type in CONFIG_MAPPING_NAMES or model_type in CONFIG_MAPPING:
        return
    if config.get("auto_map"):
        if trust_remote_code:
            return
        code = sorted({str(v).split("--")[-1].split(".")[0] + ".py" for v in config["auto_map"].values()})
        raise RemoteCodeRefused(
            f"{name} wants to run code of its own ({', '.join(code)}) because transformers does not know model_type "
            f"{model_type!r}; read that code, then allow it with --trust-remote-code (trust_remote_code=True)"
        )
    if not model_type:
        raise BrokenModel(f"the config.json of {name} names no model_type; it is no transformers model")
    near = near_matches(str(model_type), list(CONFIG_MAPPING_NAMES))
    hint = f"did you mean {near}? " if near else ""
    raise BrokenModel(
        f"{name}: model_type {model_type!r} is unknown to transformers {transformers.__version__}; {hint}"
        "a newer transformers may know it"
    )


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file, checked against the size of the file; tensor name to dtype, shape, data_offsets.

    Raises:
        BrokenModel: Truncated, or no safetensors file at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        _check_pointer(path, start)
        length = int.from_bytes(start, "little")
        if size < 8 or (length > size - 8 and length <= _MAX_HEADER):
            raise BrokenModel(
                f"{path} is truncated: it ends inside its header, after {size:,} bytes; fetch it again"
            )
        if length > _MAX_HEADER:
            raise BrokenModel(
                f"{path} is no safetensors file: its first 8 bytes give a header of {length:,} bytes"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        for entry in header.values():
            entry["dtype"], entry["shape"]
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise BrokenModel(f"{path} is damaged: its header is not readable; fetch it again") from error
    expected = 8 + length + end
    if size < expected:
        raise BrokenModel(f"{path} is truncated: it has {size:,} of {expected:,} bytes; fetch it again")
    if size > expected:
        raise BrokenModel(
            f"{path} is damaged: it has {size:,} bytes and its header describes {expected:,}; fetch it again"
        )
    return dict(header)


def check_gguf(path: Path) -> None:
    """Refuse a file that is no GGUF.

    Raises:
        BrokenModel: It does not begin like one.
    """
    with path.open("rb") as file:
        start = file.read(8)
    _check_pointer(path, start)
    if start[:4] != b"GGUF":
        raise BrokenModel(f"{path} is no GGUF file: it begins with {start[:4]!r}")


def _check_pointer(path: Path, start: bytes) -> None:
    if start == b"version ":
        raise BrokenModel(f"{path} is a Git LFS pointer, not the weights; fetch them with git lfs pull")


def _check_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    _check_pointer(path, start)
    if not start:
        raise BrokenModel(f"{path} is truncated: it is empty; fetch it again")
    if start[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise BrokenModel(f"{path} is truncated: the directory at its end is missing; fetch it again")


def _no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f"{folder} is an adapter without a model (adapter_config.json); merge it into its base model and save that"
    inside = sorted(p.parent for p in folder.glob("*/config.json") if any(p.parent.glob("*.safetensors")))
    if inside:
        return f"{folder} has no config.json, so it is no model; did you mean {str(inside[0])!r}?"
    if gguf := sorted(folder.glob("*.gguf")):
        return f"{folder} has no config.json; for the GGUF file in it, name the file: {str(gguf[0])!r}"
    names = sorted(p.name for p in folder.iterdir())
    there = f"it holds {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else "it is empty"
    return f"{folder} has no config.json, so it is no model: {there}"


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers would load: one safetensors file, shards, then pickles."""
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    if (folder / _INDEX).is_file():
        return _shards(folder / _INDEX)
    if (folder / _PICKLE).is_file():
        return (folder / _PICKLE,)
    if (folder / _PICKLE_INDEX).is_file():
        return _shards(folder / _PICKLE_INDEX)
    others = sorted({p.name for pattern in _FOREIGN for p in folder.glob(pattern)})
    shards = [name for name in others if name.startswith("model-") and name.endswith(".safetensors")]
    if shards:
        raise BrokenModel(f"{folder} has shards ({shards[0]}, ...) and no {_INDEX} that says what is in them")
    there = f"; it has {', '.join(others[:3])}, which cannot be read from here" if others else ""
    raise BrokenModel(f"{folder} has a config.json and no weights: {_SINGLE} or {_INDEX} is expected{there}")


def _shards(index: Path) -> tuple[Path, ...]:
    places = read_json(index).get("weight_map")
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(name, str) for name in places.values())
    ):
        raise BrokenModel(f"{index} has no weight_map that names files")
    files = tuple(index.parent / name for name in sorted(set(places.values())))
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BrokenModel(
            f"{index.parent} lacks the weight file {missing[0]}{more}: {index.name} names {len(files)} files; fetch it again"
        )
    return files
