"""What a search may choose: fields of a recipe, each among some values or within a range.

    {"attention": ["softmax", "scaled", "sink-logit"],
     "learning_rate": {"low": 1e-3, "high": 1e-2, "log": true},
     "objective.kurtosis.weight": {"low": 1e-4, "high": 0.1, "log": true, "or": 0},
     "objective.quantization.scheme": ["w16a16", "w8a8", "w4a4"]}

A name is a field of the recipe; dots go into fields that are mappings. A list is a choice. A range is a number between `low` and `high`, on a
logarithmic scale with `log`, whole with `integer`; with `or` it may also be that value, which makes a part of the objective optional.
What decides on which text losses are measured (text, tokenizer, vocabulary, context, held_out) cannot be chosen: losses would not compare.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from skerry.errors import UnknownOption, near_matches
from skerry.redesign.objective_settings import PARTS
from skerry.redesign.recipe import Recipe

DEFAULT: dict[str, Any] = {
    "attention": ["softmax", "scaled", "sink-logit"],
    "optimiser": ["adamw", "muon"],
    "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "objective.kurtosis.weight": {"low": 1e-4, "high": 0.1, "log": True, "or": 0},
    "objective.z_loss.weight": {"low": 1e-5, "high": 1e-2, "log": True, "or": 0},
    "objective.quantization.scheme": ["w16a16", "w8a8", "w4a4"],
}
_FIXED = ("text", "tokenizer", "vocabulary", "context", "held_out", "seed")
_MAPPINGS = ("attention_options", "norm_options", "optimiser_options", "objective")
# What a bare value of an objective's part stands for, so that a dotted name can go into it.
_BARE = {"quantization": "scheme", "private": "noise"}
_RANGE = ("low", "high", "log", "integer", "or")


@dataclass(frozen=True)
class Choice:
    """One of some values, by its place in the list.

    Attributes:
        name: Dotted name.
        values: Plain values.
    """

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Span:
    """A number within a range.

    Attributes:
        name: Dotted name.
        low: Smallest.
        high: Largest.
        log: On a logarithmic scale.
        integer: Whole numbers.
        instead: What it may be instead of a number; None for nothing.
    """

    name: str
    low: float | int
    high: float | int
    log: bool = False
    integer: bool = False
    instead: Any = None


Axis = Choice | Span


def read_space(given: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes of a space.

    Raises:
        UnknownOption: A field that recipes do not have or that is fixed, or values that cannot be meant.
    """
    if not given:
        raise UnknownOption("the space is empty: nothing could be chosen; name a field and its values")
    return tuple(_axis(name, value) for name, value in given.items())


def read_space_file(path: str | Path) -> dict[str, Any]:
    """A space from a JSON file.

    Raises:
        UnknownOption: It is not there, no JSON, or no object.
    """
    try:
        found = json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise UnknownOption(f"the space {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UnknownOption(
            f"the space {path} holds a {type(found).__name__}; an object with fields is expected"
        )
    return found


def _axis(name: str, value: Any) -> Axis:
    _check_name(name)
    if isinstance(value, list | tuple):
        if not value:
            raise UnknownOption(f"{name} has no value to choose; give some in a list")
        return Choice(name, tuple(value))
    if not isinstance(value, Mapping):
        raise UnknownOption(
            f'{name} is {value!r}; it is a list of values, or a range such as {{"low": 1e-4, "high": 0.1, "log": true}}'
        )
    if unknown := [word for word in value if word not in _RANGE]:
        near = near_matches(str(unknown[0]), list(_RANGE))
        raise UnknownOption(
            f"the range of {name} has no {unknown[0]!r}{f'; did you mean {near}?' if near else '.'} It has {', '.join(_RANGE)}"
        )
    low, high = value.get("low"), value.get("high")
    for word, x in (("low", low), ("high", high)):
        if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
            raise UnknownOption(f"{word} of {name} is {x!r}; a range needs two numbers, low and high")
    assert low is not None and high is not None
    if low >= high:
        raise UnknownOption(f"the range of {name} goes from {low} to {high}; low must be below high")
    if value.get("log") and low <= 0:
        raise UnknownOption(f"the range of {name} begins at {low}; a logarithmic one begins above 0")
    return Span(name, low, high, bool(value.get("log")), bool(value.get("integer")), instead=value.get("or"))


def _check_name(name: str) -> None:
    known = [f.name for f in fields(Recipe) if f.name not in _FIXED]
    first, _, rest = name.partition(".")
    if first in _FIXED:
        raise UnknownOption(
            f"{first} cannot be searched: losses would not compare; give it in the recipe that the search starts from"
        )
    if first not in known or (rest and first not in _MAPPINGS):
        words = [k for k in known if k not in _MAPPINGS] + [f"objective.{part}.weight" for part in PARTS[:3]]
        near = near_matches(name, words)
        raise UnknownOption(
            f"a recipe has no {name!r}{f'; did you mean {near}?' if near else '.'} It has {', '.join(known)}"
        )


def with_values(base: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """The recipe with fields at dotted names changed.

    Raises:
        UnknownOption: A value of another type.
    """
    plain = copy.deepcopy(base.plain())
    for name, value in chosen.items():
        *path, last = name.split(".")
        place = plain
        for word in path:
            inner = place.get(word, {})
            if not isinstance(inner, Mapping):
                inner = {_BARE.get(word, "weight"): inner}
            place[word] = dict(inner)
            place = place[word]
        place[last] = value
    return Recipe.from_plain(plain)


def value_in(base: Recipe, name: str) -> Any:
    """What a recipe has at a dotted name; None where it has nothing."""
    place: Any = base.plain()
    for word in name.split("."):
        if isinstance(place, Mapping):
            place = place.get(word)
        elif word != _BARE.get(name.split(".")[1], "weight"):
            return None
    return place


def extremes(axes: tuple[Axis, ...]) -> list[dict[str, Any]]:
    """One change of a recipe for every value that must be possible: all of a list, both ends of a range."""
    found: list[dict[str, Any]] = []
    for axis in axes:
        if isinstance(axis, Choice):
            found += [{axis.name: value} for value in axis.values]
        else:
            ends = [axis.low, axis.high, *([] if axis.instead is None else [axis.instead])]
            found += [{axis.name: int(x) if axis.integer else x} for x in ends]
    return found
