"""The long strings of schemes, `weights=int4:asym:group128,inputs=int8:sym:token`, read. scheme.py says what they mean.

A piece that is left out is what the short form takes: weights per channel, inputs per token (per tensor where static), the cache and
attention per token and, as integers, asymmetric.
"""

from __future__ import annotations

import re
from typing import Any

from skerry.errors import UnknownOption
from skerry.impact.numbers import NUMBERS
from skerry.impact.scheme import KINDS, TensorSpec, number_format, observer_piece, unknown_word

_PIECES = ("sym", "asym", "tensor", "token", "channel", "column", "static", "dynamic", "minmax", "mse")


def scheme_fields(words: str) -> dict[str, TensorSpec]:
    """The specs of a long string in lower case, by kind of tensor.

    Raises:
        UnknownOption: Naming the piece that is wrong and what was expected.
    """
    found: dict[str, TensorSpec] = {}
    for part in words.split(","):
        kind, equals, value = (p.strip() for p in part.partition("="))
        if kind not in KINDS or not equals:
            raise UnknownOption(f"{words!r}: {unknown_word('kind of tensor', kind, KINDS)}")
        if kind in found:
            raise UnknownOption(f"{words!r} names {kind!r} twice; keep one of them")
        if value in ("16", "none"):
            continue
        fields = spec_fields(value)
        number = NUMBERS[fields["number"]]
        if not number.block and "granularity" not in fields:
            fields["granularity"] = _granularity(kind, fields)
        if kind in ("attention", "kv") and number.is_integer:
            fields.setdefault("symmetric", False)
        found[kind] = TensorSpec(**fields)
    return found


def _granularity(kind: str, fields: dict[str, Any]) -> str:
    """What the short form takes where nothing is said."""
    if kind == "weights":
        return "channel"
    is_tensor = not fields.get("dynamic", True) or fields.get("observer", "").startswith("tokenwise")
    return "tensor" if is_tensor else "token"


def spec_fields(text: str) -> dict[str, Any]:
    """The fields that a spec such as "int4:asym:group128" sets, and no others.

    Raises:
        UnknownOption: Naming the piece.
    """
    first, *pieces = [p.strip() for p in text.strip().lower().split(":")]
    fields: dict[str, Any] = {"number": number_format(first).name}
    said: dict[str, str] = {}
    for piece in _join_observers(pieces):
        for name, value in _piece(piece, text).items():
            if fields.get(name, value) != value:
                raise UnknownOption(f"{text!r}: {piece!r} contradicts {said[name]!r}; keep one of them")
            fields[name], said[name] = value, piece
    if NUMBERS[fields["number"]].block and fields.get("granularity") == "tensor":
        raise UnknownOption(
            f"{text!r}: {fields['number']} has one scale per block, not per tensor: leave it out"
        )
    return fields


def _join_observers(pieces: list[str]) -> list[str]:
    """`percentile:99.9` was cut at its colon; put it together."""
    joined: list[str] = []
    for piece in pieces:
        if joined and joined[-1] in ("percentile", "tokenwise"):
            joined[-1] += f":{piece}"
        else:
            joined.append(piece)
    return joined


def _piece(piece: str, text: str) -> dict[str, Any]:
    """The fields that one piece of a long spec sets."""
    if piece in ("sym", "asym"):
        return {"symmetric": piece == "sym"}
    if piece in ("tensor", "token", "channel", "column"):
        return {"granularity": piece}
    if piece in ("static", "dynamic"):
        return {"dynamic": piece == "dynamic"}
    if m := re.fullmatch(r"g(?:roup)?(\d+)", piece):
        return {"granularity": "group", "group_size": int(m[1])}
    if observer := observer_piece(piece):
        return {"observer": observer}
    known = [*_PIECES, "group128", "p99.9", "tokenwise0.99"]
    raise UnknownOption(f"{text!r}: {unknown_word('piece', piece, known)}")
