"""All taming methods by name, and pipelines of them from text: `os+,gptq`.

Order matters. Transforms change the model, so they come first; what names channels, entries or ranges of the model as it then is (kind
`runtime`), or rounds its weights (kind `weights`), comes behind them. Weights are rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from skerry.errors import NotPossible, UnknownOption, near_matches
from skerry.impact.scheme import Scheme
from skerry.tame.method import Method
from skerry.tame.methods import (
    awq,
    clip,
    gptq,
    llm_int8,
    os,
    os_plus,
    os_plus_published,
    prefix,
    rotation,
    rtn,
    smoothquant,
    spinquant,
    super_weights,
)

_FOUND = (
    rtn.METHOD,
    clip.METHOD,
    smoothquant.METHOD,
    os.METHOD,
    replace(os_plus.METHOD, name="os+"),
    replace(os_plus_published.METHOD, name="os+published"),
    awq.METHOD,
    llm_int8.METHOD,
    super_weights.METHOD,
    prefix.METHOD,
    rotation.METHOD,
    spinquant.METHOD,
    gptq.METHOD,
)
METHODS: dict[str, Method] = {m.name: m for m in _FOUND}
# Other words for a method, without what `_plain` takes away.
_ALIASES = {
    "sq": "smoothquant",
    "smooth": "smoothquant",
    "osplus": "os+",
    "outliersuppression": "os",
    "outliersuppression+": "os+",
    "os+paper": "os+published",
    "ospluspublished": "os+published",
    "llmint8": "llm.int8",
    "int8": "llm.int8",
    "decomposition": "llm.int8",
    "superweight": "super-weights",
    "sw": "super-weights",
    "prefixquant": "prefix",
    "quarot": "rotation",
    "hadamard": "rotation",
    "rotate": "rotation",
    "spin": "spinquant",
    "nearest": "rtn",
    "roundtonearest": "rtn",
    "clipping": "clip",
    "naiveclip": "clip",
}
_ROTATIONS = ("rotation", "spinquant")
_OS_PLUS = ("os+", "os+published")


def add_method(method: Method, *, words: Sequence[str] = ()) -> None:
    """Make a method known that lives in a room below this one; adding it again changes nothing.

    Args:
        method: The method.
        words: Other words for it.
    """
    METHODS[method.name] = method
    _ALIASES.update({_plain(word): method.name for word in words})


def find_method(word: str) -> Method:
    """The method of a name or of another word for it, in any case; `-`, `_`, `.` and blanks do not count.

    Raises:
        UnknownOption: With the near matches.
    """
    plain = {_plain(name): name for name in METHODS} | _ALIASES
    name = plain.get(_plain(word))
    if name is None:
        near = near_matches(word.strip().lower(), [*METHODS, *_ALIASES])
        raise UnknownOption(
            f"there is no method {word.strip()!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(METHODS)}"
        )
    return METHODS[name]


def _plain(word: str) -> str:
    return "".join(c for c in word.lower() if c not in "-_. ()")


def parse_pipeline(text: str) -> list[Method]:
    """The methods of `os+,gptq`, in order.

    Raises:
        UnknownOption: A method that does not exist, an order that makes no sense, or two methods that exclude each other.
    """
    words = [w for w in text.split(",") if w.strip()]
    if not words or len(words) != text.count(",") + 1:
        raise UnknownOption(
            f"the pipeline {text!r} has {'an empty place' if words else 'no method'}; name methods joined by commas, e.g. 'os+,gptq'"
        )
    methods = [find_method(word) for word in words]
    _refuse_pairs(methods)
    _refuse_order(methods)
    return methods


def _refuse_pairs(methods: Sequence[Method]) -> None:
    names = [m.name for m in methods]
    taken_away = [m.name for m in methods if m.name == "prefix" or m.replaces is not None]
    for name in names:
        if names.count(name) > 1:
            raise UnknownOption(f"the pipeline names {name!r} {names.count(name)} times; once is enough")
    for pair, why in (
        ([m.name for m in methods if m.kind == "weights"], "weights are rounded once"),
        ([n for n in names if n in _ROTATIONS], "spinquant begins with that rotation"),
        ([n for n in names if n in _OS_PLUS], "both search the same seams"),
        (taken_away, "the prefix puts tokens in front, and the other takes the first one away"),
    ):
        if len(pair) > 1:
            raise UnknownOption(
                f"{' and '.join(map(repr, pair))} exclude each other: {why}; choose one of them"
            )


def _refuse_order(methods: Sequence[Method]) -> None:
    for early, late in pairwise(methods):
        if late.kind != "transform":
            continue
        if early.kind == "weights":
            why = f"{early.name} rounds the weights, and {late.name} would change them afterwards"
        elif early.kind == "runtime":
            why = f"what {early.name} finds is of the model as it is, and {late.name} would change that afterwards"
        elif early.name == "os":
            why = f"the static ranges that os chooses are of the model as it leaves it, and {late.name} would change that afterwards"
        else:
            continue
        order = sorted(methods, key=lambda m: (m.kind != "transform", m.name == "os"))
        raise UnknownOption(f"{why}: transforms come first. Write '{','.join(m.name for m in order)}'")


def check_needs(methods: Sequence[Method], scheme: Scheme) -> None:
    """Refuse methods that have nothing to do under a scheme.

    Raises:
        NotPossible: Naming the method and what it needs.
    """
    for method in methods:
        for need in method.needs:
            if getattr(scheme, need) is None:
                example = "w8a8" if need == "inputs" else "w4a16-g128"
                raise NotPossible(
                    f"{method.name} makes the rounding of {need} better, and {scheme} leaves {need} alone; {example} is a scheme that does not"
                )


__all__ = ["METHODS", "add_method", "check_needs", "find_method", "parse_pipeline"]
