"""A method's own options: words with defaults, as a user gives them on the command line or in Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from skerry.errors import UnknownOption, near_matches

_FALSE, _TRUE = ("false", "no", "off", "0"), ("true", "yes", "on", "1")


def take_options(given: Mapping[str, Any], method: str, **defaults: Any) -> dict[str, Any]:
    """The defaults with what was given in their place, each of the kind of its default.

    Args:
        given: Option to value.
        method: Name of the method, for messages.
        defaults: Option to its default; a bool, an int or a float is what its values must be, anything else is taken as it is.

    Raises:
        UnknownOption: An option that the method does not have, or a value of another kind.
    """
    for name in given:
        if name not in defaults:
            near = near_matches(name, list(defaults))
            has = f"it has {', '.join(sorted(defaults))}" if defaults else "it has none"
            raise UnknownOption(
                f"{method} has no option {name!r}; {f'did you mean {near}? ' if near else ''}{has}"
            )
    return {
        name: _of_kind(given[name], default, f"{method}: option {name!r}") if name in given else default
        for name, default in defaults.items()
    }


def _of_kind(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise UnknownOption(f"{where} is true or false, not {value!r}")
    if isinstance(default, (int, float)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UnknownOption(f"{where} is a number, not {value!r}") from None
        if isinstance(default, int):
            if number != int(number):
                raise UnknownOption(f"{where} is a whole number, not {value!r}")
            return int(number)
        return number
    return value


def check_between(value: float | int, low: float | int, high: float | int, where: str) -> float | int:
    """The value, if it lies between two numbers.

    Raises:
        UnknownOption: It does not, or is no number.
    """
    if math.isnan(value) or not low <= value <= high:
        to = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise UnknownOption(f"{where} is {value:g}; it must be {to}")
    return value
