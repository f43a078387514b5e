"""skerry presets."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import ask_document


def presets(*, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Explain the detection rules of the literature and our own.

    Parameters
    ----------
    json
        Print one JSON document and nothing else.
    """
    from skerry.outliers.presets import PRESETS

    rows = [{"name": p.name, "rule": p.rule, "source": p.source} for p in PRESETS.values()]
    if json:
        ask_document({"schema": 1, "presets": rows})
        return
    from skerry.cli.console import console
    from skerry.report.listing import presets_table

    console().print(presets_table(rows))
