"""skerry diff."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import ask_document


def diff(before: str, after: str, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Compare two runs: which findings came, went, moved; which costs moved beyond their intervals.

    Parameters
    ----------
    before
        A run directory.
    after
        Another one.
    json
        Print one JSON document and nothing else.
    """
    from skerry.outliers.diff import compare_runs
    from skerry.run import Run

    result = compare_runs(Run.open(before), Run.open(after))
    if json:
        ask_document(result.document())
        return
    from skerry.cli.console import console
    from skerry.report.difference import difference

    console().print(difference(result))
