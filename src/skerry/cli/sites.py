"""skerry sites."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import ask_document


def sites(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
    trust_remote_code: bool = False,
) -> None:
    """List the vocabulary of sites, or the sites of a model.

    Parameters
    ----------
    model
        A folder, a hub id or a .gguf file; the whole vocabulary by default.
    json
        Print one JSON document and nothing else.
    trust_remote_code
        Run code that the checkpoint ships.
    """
    from skerry.report.listing import site_rows, sites_table

    rows = site_rows(model, trust_remote_code=trust_remote_code)
    if json:
        ask_document({"schema": 1, "model": model, **rows})
        return
    from skerry.cli.console import console

    console().print(sites_table(rows))
