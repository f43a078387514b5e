"""The tokenizer that belongs to a model, and whether it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from skerry.anatomy.checkpoint import has_tokenizer
from skerry.anatomy.find import Found, reachable
from skerry.anatomy.hush import hushed, one_line
from skerry.choices import Choice
from skerry.errors import BadTokens, BrokenModel, RemoteCodeRefused, UnknownModel

Tokenizer = PreTrainedTokenizerBase | None


def load_tokenizer(
    found: Found, wanted: Any, *, trust_remote_code: bool = False
) -> tuple[Tokenizer, list[str]]:
    """The tokenizer that was asked for, else the model's own, with warnings; None when it has none.

    Raises:
        BrokenModel: It is there and cannot be read.
        UnknownModel: The one asked for is not there.
        RemoteCodeRefused: It wants to run its own code.
    """
    if isinstance(wanted, PreTrainedTokenizerBase):
        return wanted, []
    if wanted is not None:
        return _asked_for(wanted, trust_remote_code=trust_remote_code)
    if found.kind == "gguf":
        return _read(found.for_transformers, found.reference, gguf_file=found.path.name)
    if found.kind == "folder" and not has_tokenizer(found.path):
        return None, [f"{found.path} has no tokenizer: text cannot be read, random token ids can"]
    options: dict[str, Any] = {"local_files_only": True} if found.cached_only else {}
    if found.revision is not None:
        options["revision"] = found.revision
    return _read(found.for_transformers, found.reference, trust_remote_code=trust_remote_code, **options)


def tokenizer_of(model: nn.Module, wanted: Any) -> tuple[Tokenizer, list[str], Choice[str] | None]:
    """The tokenizer for a module that was given built: as asked for, else from the folder that its configuration names."""
    if isinstance(wanted, PreTrainedTokenizerBase):
        return wanted, [], None
    if wanted is not None:
        return *_asked_for(wanted), None
    origin = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    if not origin or not Path(origin).is_dir() or not has_tokenizer(Path(origin)):
        return None, [], None
    tokenizer, warned = _read(origin, origin)
    return tokenizer, warned, Choice(origin, "the model's configuration names this folder")


def check_fit(tokenizer: Tokenizer, size: int | None) -> list[str]:
    """Warnings about added tokens that the model has no embedding for.

    Raises:
        BadTokens: The vocabulary itself does not fit.
    """
    if tokenizer is None or size is None or len(tokenizer) <= size:
        return []
    outside = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    if not outside:
        return []
    plain = set(outside) - set(tokenizer.get_added_vocab())
    token = min(plain or outside, key=outside.__getitem__)
    if plain:
        raise BadTokens(
            f"the tokenizer does not fit the model: it has {len(tokenizer):,} tokens and the model {size:,} "
            f"({token!r} has id {outside[token]}); name the tokenizer that the model was trained with"
        )
    return [
        f"{len(outside)} added tokens of the tokenizer have no place in the model ({token!r} has id {outside[token]} of {size:,})"
    ]


def _asked_for(wanted: Any, *, trust_remote_code: bool = False) -> tuple[Tokenizer, list[str]]:
    path = Path(str(wanted)).expanduser()
    if path.is_dir() and not has_tokenizer(path):
        raise UnknownModel(f"{wanted} has no tokenizer: tokenizer.json or tokenizer_config.json is expected")
    if isinstance(wanted, Path) and not path.exists():
        raise UnknownModel(f"no tokenizer {str(wanted)!r}: there is no such folder")
    if path.exists():
        return _read(str(path), str(wanted), trust_remote_code=trust_remote_code)
    cached_only = not reachable()
    return _read(str(wanted), str(wanted), trust_remote_code=trust_remote_code, local_files_only=cached_only)


def _read(place: str, reference: str, **options: Any) -> tuple[Tokenizer, list[str]]:
    from transformers import AutoTokenizer

    try:
        with hushed():
            return AutoTokenizer.from_pretrained(place, **options), []
    except ImportError as error:
        return None, [
            f"the tokenizer of {reference} needs a library that is not installed: {one_line(error)}"
        ]
    except Exception as error:  # the tokenizers library raises plain Exception
        said = one_line(error)
        if "trust_remote_code" in str(error):
            raise RemoteCodeRefused(
                f"the tokenizer of {reference} wants to run code of its own; read it, then allow it with --trust-remote-code"
            ) from error
        if "couldn't connect" in str(error) or "not a valid model identifier" in str(error):
            raise UnknownModel(
                f"no tokenizer {reference!r}: not here, and not to be had from the hub"
            ) from error
        raise BrokenModel(
            f"the tokenizer of {reference} cannot be read: {said}; name another tokenizer, or mend this one"
        ) from error
