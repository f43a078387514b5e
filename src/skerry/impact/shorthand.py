"""The short strings of schemes, `w4a16-g128` and the like, both ways. scheme.py says what they mean."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from itertools import product

from skerry.errors import UnknownOption, near_matches
from skerry.impact.numbers import NUMBERS
from skerry.impact.scheme import (
    Scheme,
    TensorSpec,
    number_format,
    observer_piece,
    observer_word,
    unknown_word,
)

_FLAGS = ("sym", "asym", "tensor", "token", "channel", "static", "dynamic", "mse", "attn")
_EXAMPLES = (
    "w8a8",
    "w6a6",
    "w4a8",
    "w4a4",
    "w4a16",
    "w8a16",
    "kv8",
    "w4a4kv4",
    "wfp8afp8",
    "wmxfp4amxfp4",
    "wnvfp4anvfp4",
)
_KINDS = {"w": "weights", "a": "inputs", "kv": "kv"}
_DEFAULTS = {
    "w": TensorSpec("int8", granularity="channel"),
    "a": TensorSpec("int8", granularity="token"),
    "kv": TensorSpec("int8", symmetric=False, granularity="token"),
}
_WORDS = {"fp8_e4m3": "fp8"}
_FORMATS = "|".join(sorted([*NUMBERS, "fp8", "fp8e4m3", "fp8e5m2"], key=len, reverse=True))
_HEAD = re.compile(rf"(?:w(?P<w>\d+|{_FORMATS}))?(?:a(?P<a>\d+|{_FORMATS}))?(?:kv(?P<kv>\d+|{_FORMATS}))?")


def expand(words: str) -> Scheme:
    """The scheme of a short string in lower case.

    Raises:
        UnknownOption: Naming the piece that is wrong and what was expected.
    """
    head, *flags = words.split("-")
    specs = _numbers(head, words)
    for flag in flags:
        _check_flag(flag, words)
    if clash := _clash(flags):
        raise UnknownOption(f"{words!r}: -{clash[0]} contradicts -{clash[1]}; keep one of them")
    # The wide word first, so that the narrow ones win; observers last, since they ask what is static.
    for flag in sorted(
        set(flags) - {"attn"}, key=lambda f: (f != "tensor", observer_piece(f) is not None, f)
    ):
        _apply(flag, specs, words)
    attention = _attention(specs, words) if "attn" in flags else None
    return Scheme(weights=specs.get("w"), inputs=specs.get("a"), attention=attention, kv=specs.get("kv"))


@lru_cache(maxsize=256)
def shorten(scheme: Scheme) -> str | None:
    """The short string that means this scheme; None where only the long form can say it."""
    specs = {key: spec for key, kind in _KINDS.items() if (spec := getattr(scheme, kind)) is not None}
    if not specs:
        return "w16a16" if scheme.attention is None else None
    head = "".join(
        key + (_word(specs[key]) if key in specs else "16")
        for key in _KINDS
        if key in specs or (key != "kv" and len(specs) > ("kv" in specs))
    )
    sizes = {f"g{s.group_size}" for s in specs.values() if s.group_size and not s.format.block}
    observers = {observer_word(s.observer) for s in specs.values() if s.observer != "minmax"}
    if len(sizes) > 1 or len(observers) > 1:
        return None  # a flag has one value
    choices = (
        ["", "sym"] if list(specs) == ["kv"] else ["", "asym"],
        ["", *sizes],
        ["", "tensor", "static"],
        ["", "token"],
        ["", "dynamic"],
        ["", *observers],
        ["attn" if scheme.attention else ""],
    )
    for flags in sorted((tuple(filter(None, f)) for f in product(*choices)), key=len):
        text = "-".join([head, *flags])
        try:
            if expand(text) == scheme:
                return text
        except UnknownOption:
            continue
    return None


def _word(spec: TensorSpec) -> str:
    """The number of a spec as the short form writes it."""
    return _WORDS.get(spec.number, spec.number.removeprefix("int"))


def _attention(specs: dict[str, TensorSpec], words: str) -> TensorSpec:
    if "a" not in specs:
        raise UnknownOption(
            f"{words!r}: -attn takes the number of the inputs, and they are left alone; e.g. w8a8-attn"
        )
    number = specs["a"].format
    if number.block:
        return specs["a"]  # the scheme says why it cannot be
    return TensorSpec(number.name, symmetric=not number.is_integer, granularity="token")


def _numbers(head: str, words: str) -> dict[str, TensorSpec]:
    """Default specs of the numbers in front of the flags, by "w", "a" and "kv"."""
    m = _HEAD.match(head)
    end = m.end() if m else 0
    if not head or end != len(head):
        near = near_matches(head, _EXAMPLES)
        hint = f"; did you mean {near}?" if near else "."
        wrong = (
            f"{words!r} is no scheme"
            if not end
            else f"{words!r}: {head[end:]!r} behind {head[:end]!r} means nothing"
        )
        raise UnknownOption(
            f"{wrong}{hint} A scheme is w (weights), a (inputs) and kv (cache), each with 2 to 8 bits, 16 or one of "
            f"{', '.join(n for n in NUMBERS if not n.startswith('int'))}; then flags: w8a8, w4a16-g128, kv8"
        )
    specs = {}
    for key, value in m.groupdict().items() if m else ():
        if value is None or value == "16":
            continue
        if value.isdigit() and f"int{value}" not in NUMBERS:
            nearest = min(2, 8, 16, key=lambda b: abs(b - int(value)))
            raise UnknownOption(
                f"{words!r}: no {_KINDS[key]} of {value} bits; 2 to 8 bits exist, 16 leaves them alone: "
                f"did you mean {key}{nearest}?"
            )
        number = number_format(f"int{value}" if value.isdigit() else value)
        default = _DEFAULTS[key]
        specs[key] = (
            TensorSpec(number.name)
            if number.block
            else replace(default, number=number.name, symmetric=default.symmetric or not number.is_integer)
        )
    return specs


def _check_flag(flag: str, words: str) -> None:
    if flag in _FLAGS or observer_piece(flag):
        return
    if m := re.fullmatch(r"g(?:roup)?(\d+)", flag):
        if int(m[1]) < 1:
            raise UnknownOption(f"{words!r}: a group has 1 value or more, not {m[1]}; e.g. -g128")
        return
    raise UnknownOption(
        f"{words!r}: {unknown_word('flag', flag, [*_FLAGS, 'g128', 'p99.9', 'tokenwise0.99'])}"
    )


def _clash(flags: list[str]) -> tuple[str, str] | None:
    """Two flags that say different things of the same field."""
    groups = [f for f in flags if re.fullmatch(r"g(?:roup)?\d+", f)]
    observers = [f for f in flags if observer_piece(f)]
    for field in (
        ["sym", "asym"],
        ["static", "dynamic"],
        ["static", "token"],
        [*groups, "channel"],
        [*groups, "tensor"],
        observers,
    ):
        given = [f for f in flags if f in field]
        if len(set(given)) > 1:
            return given[0], given[1]
    return None


def _apply(flag: str, specs: dict[str, TensorSpec], words: str) -> None:
    """Change the specs that a flag is for."""

    def those(*keys: str) -> list[str]:
        """Which of these the scheme has with a choice left by the format; what is alone in a scheme takes every flag."""
        free = [k for k in specs if not specs[k].format.block]
        found = [k for k in keys if k in free] or (free if len(specs) == 1 and free != ["w"] else [])
        if not found:
            kinds = " and ".join(_KINDS[k] for k in keys)
            blocks = [s.format for s in specs.values() if s.format.block]
            if blocks:
                raise UnknownOption(
                    f"{words!r}: -{flag} cannot be chosen for {blocks[0].name}, whose format fixes symmetric blocks of {blocks[0].block}; "
                    "leave the flag out"
                )
            raise UnknownOption(
                f"{words!r}: -{flag} is for {kinds}, and none here takes it; leave the flag out or write the long form"
            )
        return found

    def change(keys: list[str], **fields: object) -> None:
        for key in keys:
            specs[key] = replace(specs[key], **fields)  # type: ignore[arg-type]

    if flag in ("sym", "asym"):
        integers = [k for k in those("w", "a") if specs[k].format.is_integer]
        if not integers:
            raise UnknownOption(f"{words!r}: -{flag} is for integers; floats are symmetric")
        change(integers, symmetric=flag == "sym")
    elif flag == "tensor":
        keys = those("w", "a")
        change(keys, granularity="tensor")
        change([k for k in keys if k == "a"], dynamic=False)
    elif flag == "token":
        change(those("a"), granularity="token", dynamic=True)
    elif flag == "channel":
        change(those("w"), granularity="channel")
    elif flag == "static":
        change(those("a"), granularity="tensor", dynamic=False)
    elif flag == "dynamic":
        change(those("a"), dynamic=True)
    elif m := re.fullmatch(r"g(?:roup)?(\d+)", flag):
        change(those("w"), granularity="group", group_size=int(m[1]))
    elif observer := observer_piece(flag):
        static = [k for k in specs if not specs[k].dynamic]
        change(static or those("w"), observer=observer)
