"""Names and options of choices, checked before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from skerry.errors import UnknownOption, near_matches


def check_choice(
    kind: str,
    name: str,
    known: Mapping[str, type] | Collection[str],
    options: Mapping[str, Any] | None = None,
    *,
    fixed: Collection[str] = (),
) -> None:
    """Refuse an unknown name, or an option that the choice does not have.

    Args:
        kind: What is chosen, in words.
        name: The choice.
        known: All choices, with their classes where they have options.
        options: Keyword arguments of the choice.
        fixed: Arguments of the classes that are no options.

    Raises:
        UnknownOption: With the near matches.
    """
    if name not in known:
        near = near_matches(name, list(known))
        raise UnknownOption(
            f"there is no {kind} {name!r}{f'; did you mean {near}?' if near else ';'} known: {', '.join(known)}"
        )
    if not options or not isinstance(known, Mapping):
        return
    parameters = inspect.signature(known[name].__init__).parameters  # type: ignore[misc]
    named = [p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    has = [name for name in named if name not in ("self", *fixed)]
    for option in options:
        if option not in has:
            near = near_matches(option, has)
            there = f"its options are {', '.join(has)}" if has else "it has no options"
            raise UnknownOption(
                f"{kind} {name!r} has no option {option!r}{f'; did you mean {near}?' if near else ';'} {there}"
            )
