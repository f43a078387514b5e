"""From a folder, a hub id, a GGUF file or a built module to a model that can be read, with its tokenizer.

    load("path/to/folder")       safetensors first, one file or shards; pickles only as plain tensors (weights_only=True)
    load("organisation/name")    through transformers and its cache
    load("model.Q4_K_M.gguf")    dequantized by transformers; needs the extra `gguf`
    load(module)                 used as it is: neither moved nor converted

Files are checked before anything is loaded (`checkpoint.py`).  Weights that the checkpoint lacks are random numbers, and random
numbers are never measured as if they were the model: a missing matrix of a block, or a tenth of all parameters, is an error;
less than that is a warning.  The attention implementation is not chosen here: `watch` does that while it is open.
"""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from skerry.anatomy.builtins import default_model, encoder_model
from skerry.anatomy.checkpoint import (
    check_config,
    check_gguf,
    inspect,
    read_config,
    read_header,
)
from skerry.anatomy.content import content_key
from skerry.anatomy.find import Found, find
from skerry.anatomy.hush import hushed, one_line
from skerry.anatomy.placing import asked_dtype, check_pair, choose_device, choose_dtype, name_of
from skerry.anatomy.tokenizing import check_fit, load_tokenizer, tokenizer_of
from skerry.choices import Choice
from skerry.errors import BrokenModel, MissingExtra, UnknownOption

_LARGE_PART = 0.1


__all__ = ["Loaded", "default_model", "encoder_model", "load", "max_positions", "vocab_size"]


@dataclass
class Loaded:
    """A model in evaluation mode, ready to be resolved.

    Attributes:
        model: The module.
        tokenizer: Its tokenizer; None when it has none.
        name: What the report calls it.
        source: Where it came from, in words.
        content_key: What it computes with; see `content.content_key`.
        choices: What was chosen for the user: `dtype`, `device`, perhaps `tokenizer`; values are words.
        warnings: What a reader of the results must know, one line each.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    source: str
    content_key: str
    choices: dict[str, Choice[str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Number of parameters; shared ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids that the model can read: rows of its embedding."""
        return vocab_size(self.model)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model can read; None where nothing limits it."""
        return max_positions(self.model)

    def __repr__(self) -> str:
        tokens = type(self.tokenizer).__name__ if self.tokenizer is not None else "no tokenizer"
        return f"<Loaded {self.name}: {type(self.model).__name__}, {self.num_parameters:,} parameters, {tokens}; resolve(loaded.model) next>"


def load(
    model: str | Path | nn.Module,
    *,
    dtype: Any = None,
    device: Any = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    revision: str | None = None,
) -> Loaded:
    """Load a model for reading.

    Args:
        model: A folder, a hub id, a .gguf file, or a built module. A module is put into evaluation mode and otherwise left alone.
        dtype: auto, bf16, fp16, fp32, fp64 or a torch.dtype. `auto` is as stored, but float32 for float16 on a CPU.
        device: auto (cuda, mps, cpu: the first that is there) or a device.
        trust_remote_code: Allow code that the checkpoint ships.
        tokenizer: A tokenizer or where to find one; None for the model's own.
        revision: Branch, tag or commit of a hub id; None for its main branch.

    Raises:
        UnknownModel: Nothing of that name here or on the hub.
        BrokenModel: A checkpoint that is incomplete or damaged.
        RemoteCodeRefused: It wants to run its own code.
        UnknownOption: No such dtype or device.
        BadTokens: The tokenizer gives ids that the model does not know.
        MissingExtra: A library for this kind of file is not installed.
    """
    asked = asked_dtype(dtype)
    if isinstance(model, nn.Module):
        return _given(model, asked, device, tokenizer)
    place = choose_device(device)
    if asked is not None:
        check_pair(asked, place.value)
    found = find(model, revision=revision)
    if found.kind == "gguf":
        return _load_gguf(found, asked, place, tokenizer)
    config, stored, source = _look(found, trust_remote_code=trust_remote_code)
    number = choose_dtype(
        asked, place.value, stored=stored, config=config.get("dtype") or config.get("torch_dtype")
    )
    check_pair(number.value, place.value)
    # A quantized checkpoint brings its own types; converting them is its loader's business.
    wanted = "auto" if config.get("quantization_config") and asked is None else number.value
    built, warned = _build(
        _auto_class(config),
        found,
        dtype=wanted,
        trust_remote_code=trust_remote_code,
        ignore_mismatched_sizes=True,
    )
    tokens, more = load_tokenizer(found, tokenizer, trust_remote_code=trust_remote_code)
    return _finish(built, tokens, found, source, number, place, [*warned, *more])


def vocab_size(model: nn.Module) -> int | None:
    """Rows of the input embedding, else what the configuration says."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        return int(embedding.weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        size = getattr(getattr(model, "config", None), "vocab_size", None)
        return int(size) if isinstance(size, int) else None


def max_positions(model: nn.Module) -> int | None:
    """Longest sequence: what the configuration says, less the rows that an embedding of positions keeps for padding."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return module.num_embeddings - module.padding_idx - 1
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def _given(model: nn.Module, asked: torch.dtype | None, device: Any, tokenizer: Any) -> Loaded:
    first = next(model.parameters(), None)
    if first is None:
        raise BrokenModel(
            f"{type(model).__name__} has no parameters; give the whole model, an nn.Module with its weights"
        )
    if asked is not None and asked != first.dtype:
        raise UnknownOption(
            f"dtype {name_of(asked)}: the model is built already, in {name_of(first.dtype)}; "
            f"convert it yourself with model.to(torch.{name_of(asked)})"
        )
    if device is not None and str(device) != "auto" and choose_device(device).value.type != first.device.type:
        raise UnknownOption(
            f"device {device}: the model is built already, on {first.device}; move it yourself with model.to({str(device)!r})"
        )
    tokens, warned, chosen = tokenizer_of(model, tokenizer)
    warned = [*warned, *check_fit(tokens, vocab_size(model))]
    choices = {
        "dtype": Choice(name_of(first.dtype), "the model was given built"),
        "device": Choice(str(first.device), "the model was given built"),
        **({"tokenizer": chosen} if chosen else {}),
    }
    name = type(model).__name__
    return Loaded(
        model.eval(), tokens, name, "a module given by the caller", content_key(model), choices, tuple(warned)
    )


def _look(found: Found, *, trust_remote_code: bool) -> tuple[dict[str, Any], str | None, str]:
    """Configuration, stored type and description of a checkpoint, checked as far as its files are here."""
    if found.kind == "folder":
        checkpoint = inspect(found.path, trust_remote_code=trust_remote_code)
        count = len(checkpoint.files)
        files = (
            f"{count} {checkpoint.kind} file{'s' if count > 1 else ''}, {checkpoint.num_bytes / 1e6:,.0f} MB"
        )
        return checkpoint.config, checkpoint.dtype, f"folder {found.path}: {files}"
    config = read_config(found.path / "config.json")
    check_config(config, found.reference, trust_remote_code=trust_remote_code)
    headers = [read_header(path) for path in sorted(found.path.glob("*.safetensors"))]
    stored = {entry["dtype"] for header in headers for entry in header.values() if len(entry["shape"]) > 1}
    return config, stored.pop() if len(stored) == 1 else None, f"hub id {found.reference}"


def _auto_class(config: dict[str, Any]) -> Any:
    """The class that reads the checkpoint with its head, so that the head's weights are there to be measured."""
    import transformers

    named = (config.get("architectures") or [""])[0] or ""
    if named.endswith(("ForCausalLM", "LMHeadModel")) or "AutoModelForCausalLM" in (
        config.get("auto_map") or {}
    ):
        return transformers.AutoModelForCausalLM
    if named.endswith("ForMaskedLM"):
        return transformers.AutoModelForMaskedLM
    own = getattr(transformers, named, None) if named.isidentifier() else None
    return (
        own
        if isinstance(own, type) and issubclass(own, transformers.PreTrainedModel)
        else transformers.AutoModel
    )


def _load_gguf(
    found: Found, asked: torch.dtype | None, place: Choice[torch.device], tokenizer: Any
) -> Loaded:
    import transformers

    check_gguf(found.path)
    lacking = [library for library in ("gguf", "accelerate") if importlib.util.find_spec(library) is None]
    if lacking:
        names = " and ".join(lacking)
        raise MissingExtra(f'{found.path.name} cannot be read without {names}: pip install "skerry[gguf]"')
    number = (
        Choice(asked, "asked for") if asked is not None else Choice(torch.float32, "dequantized from GGUF")
    )
    check_pair(number.value, place.value)
    built, warned = _build(
        transformers.AutoModelForCausalLM, found, dtype=number.value, gguf_file=found.path.name
    )
    tokens, more = load_tokenizer(found, tokenizer)
    size = found.path.stat().st_size / 1e6
    return _finish(
        built, tokens, found, f"GGUF file {found.path}: {size:,.0f} MB", number, place, [*warned, *more]
    )


def _build(auto: Any, found: Found, **options: Any) -> tuple[nn.Module, list[str]]:
    """Load through transformers, silently; what it would have printed comes back as lines.

    Raises:
        BrokenModel: transformers cannot read it, or too much is missing.
        MissingExtra: It needs a library that is not installed.
    """
    try:
        with hushed() as said:
            if found.cached_only:
                options["local_files_only"] = True
            if found.revision is not None:
                options["revision"] = found.revision
            built, info = auto.from_pretrained(found.for_transformers, output_loading_info=True, **options)
    except ImportError as error:
        raise MissingExtra(
            f"{found.reference} needs a library that is not installed: {one_line(error)}"
        ) from error
    except pickle.UnpicklingError as error:
        raise BrokenModel(
            f"{found.reference} has a pickle that holds more than tensors, which is refused; convert it to safetensors "
            "where you trust it"
        ) from error
    except Exception as error:  # transformers and its parsers raise whatever a damaged file makes them raise
        raise BrokenModel(f"{found.reference} cannot be loaded: {one_line(error)}") from error
    warned = [one_line(line) for line in said if "LOAD REPORT" not in line]
    return built, [*dict.fromkeys(warned), *_gaps(built, info, found.reference)]


def _gaps(model: nn.Module, info: dict[str, Any], name: str) -> list[str]:
    """What the checkpoint lacks, holds in another shape, or holds in vain.

    Raises:
        BrokenModel: Random numbers would be measured.
    """
    if info["mismatched_keys"]:
        key, stored, expected = sorted(info["mismatched_keys"])[0]
        raise BrokenModel(
            f"{name}: weights do not fit the configuration: {key} is stored as {list(stored)} and the model has {list(expected)}"
            + (f", and {len(info['mismatched_keys']) - 1} more" if len(info["mismatched_keys"]) > 1 else "")
        )
    missing = sorted(info["missing_keys"])
    sizes = dict(model.named_parameters(remove_duplicate=False))
    lost = [
        key
        for key in missing
        if key in sizes and sizes[key].dim() > 1 and any(w.isdigit() for w in key.split("."))
    ]
    count = sum(sizes[key].numel() for key in missing if key in sizes)
    whole = sum(p.numel() for p in model.parameters())
    if lost or count > _LARGE_PART * whole:
        raise BrokenModel(
            f"{name} is incomplete: {(lost or missing)[0]} is not in the checkpoint"
            + (f", nor are {len(missing) - 1} more" if len(missing) > 1 else "")
            + f" ({count / whole:.0%} of all parameters would be random numbers)"
        )
    lines = [f"{key} is not in the checkpoint: random numbers in its place" for key in missing]
    unused = sorted(info["unexpected_keys"])
    if unused:
        lines.append(
            f"{len(unused):,} tensors of the checkpoint have no place in {type(model).__name__}: {', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}"
        )
    return lines


def _finish(
    built: nn.Module,
    tokens: PreTrainedTokenizerBase | None,
    found: Found,
    source: str,
    number: Choice[torch.dtype],
    place: Choice[torch.device],
    warned: list[str],
) -> Loaded:
    warned = [*warned, *check_fit(tokens, vocab_size(built))]
    try:
        moved = built.to(place.value).eval()
    except torch.OutOfMemoryError as error:
        raise BrokenModel(
            f"{found.name} does not fit on {place.value}; use --device cpu, or a smaller dtype"
        ) from error
    actual = next(moved.parameters()).dtype
    why = number.why if actual == number.value else "the checkpoint's own"
    choices = {"dtype": Choice(name_of(actual), why), "device": Choice(str(place.value), place.why)}
    return Loaded(moved, tokens, found.name, source, content_key(moved), choices, tuple(warned))
