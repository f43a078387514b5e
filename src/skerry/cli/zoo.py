"""skerry zoo."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def zoo(*, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """List the models that are built in: each is a MODEL for every other verb.

    Parameters
    ----------
    json
        Print one JSON document and nothing else.
    """
    from skerry.anatomy.zoo_cards import zoo_cards

    cards = zoo_cards()
    if json:
        from skerry.cli.asking import ask_document

        ask_document({"schema": 1, "models": [card.plain() for card in cards]})
        return
    from skerry.cli.console import console
    from skerry.report.listing import zoo_table

    console().print(zoo_table(cards))
