"""What begins and ends a sample: beginning-of-sequence tokens decide where attention sinks sit, so nothing here is silent."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from transformers import PreTrainedTokenizerBase

from skerry.errors import UnknownOption, near_matches

Bos = Literal["auto", "with", "without"]
_PROBE = "The quick brown fox jumps over the lazy dog."


class Wrapping(NamedTuple):
    """The special tokens around every sample.

    Attributes:
        prefix: Ids before the text.
        suffix: Ids after the text.
        words: The policy in words, for the card.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    words: str


def wrapping(tokenizer: PreTrainedTokenizerBase, bos: str = "auto") -> Wrapping:
    """The special tokens that every sample gets.

    `auto` does what the tokenizer's own post-processor does, found by tokenizing a probe with and without special tokens.
    `with` adds the beginning-of-sequence token (an encoder's `[CLS]`) where the tokenizer does not; `without` takes it away.
    What ends a sample (`[SEP]`, `</s>`) stays as the tokenizer has it.

    Raises:
        UnknownOption: Another policy, or `with` for a tokenizer that has no such token.
    """
    if bos not in get_args(Bos):
        near = near_matches(str(bos), get_args(Bos))
        raise UnknownOption(
            f"no policy bos={bos!r}; {f'did you mean {near}? ' if near else ''}it is auto, with or without"
        )
    prefix, suffix = _added(tokenizer)
    token = _bos_id(tokenizer)
    if bos == "with" and not prefix:
        if token is None:
            raise UnknownOption(
                f"bos='with': {_name(tokenizer)} has no beginning-of-sequence token; use bos='auto' or bos='without'"
            )
        return Wrapping(
            (token,),
            suffix,
            f"{_show(tokenizer, (token,))} begins every sample: asked for, the tokenizer adds none",
        )
    if bos == "without":
        return Wrapping((), suffix, _without_words(tokenizer, prefix, suffix))
    return Wrapping(prefix, suffix, _own_words(tokenizer, prefix, suffix, token))


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    whole = _ids(tokenizer, add_special_tokens=True)
    bare = _ids(tokenizer, add_special_tokens=False)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()  # a tokenizer that rewrites the text when it adds tokens; none is known


def _ids(tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> list[int]:
    return list(tokenizer(_PROBE, add_special_tokens=add_special_tokens)["input_ids"])


def _bos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    for token in (tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)):
        if token is not None:
            return int(token)
    return None


def _own_words(
    tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], suffix: tuple[int, ...], token: int | None
) -> str:
    ends = f"{_show(tokenizer, suffix)} ends it" if suffix else ""
    if prefix:
        return f"{_show(tokenizer, prefix)} begins every sample{', ' + ends if ends else ''}: the tokenizer adds that by itself"
    if token is None:
        words = "no token begins a sample: the tokenizer has no beginning-of-sequence token"
    else:
        words = (
            f"no token begins a sample: the tokenizer has {_show(tokenizer, (token,))} and does not add it by itself "
            "(bos='with' adds it)"
        )
    return f"{words}; {_show(tokenizer, suffix)} ends every sample" if suffix else words


def _without_words(
    tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> str:
    own = (
        f"; the tokenizer would add {_show(tokenizer, prefix)}" if prefix else " and the tokenizer adds none"
    )
    ends = f"; {_show(tokenizer, suffix)} ends every sample" if suffix else ""
    return f"no token begins a sample: asked for{own}{ends}"


def _show(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return " ".join(repr(str(token)) for token in tokenizer.convert_ids_to_tokens(list(ids)))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"
