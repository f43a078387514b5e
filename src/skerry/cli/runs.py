"""skerry runs, show, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document

if TYPE_CHECKING:
    from rich.console import Console

    from skerry.run import Run

Json = Annotated[bool, Parameter(negative=())]


def runs(folder: str = "skerry-runs", /, *, json: Json = False) -> None:
    """List the runs in a folder, newest first.

    Parameters
    ----------
    folder
        Where to look.
    json
        Print one JSON document and nothing else.
    """
    from skerry.run.listing import listing

    rows = listing(folder)
    if json:
        ask_document({"schema": 1, "runs": rows})
        return
    from skerry.cli.console import console
    from skerry.report.listing import runs_table

    console().print(runs_table(rows, folder))


def show(run: str, /, *, json: Json = False) -> None:
    """Show a finished run again.

    Parameters
    ----------
    run
        The run directory.
    json
        Print one JSON document and nothing else.
    """
    from skerry.cli.console import console
    from skerry.run import Run

    found = Run.open(run)
    report_file = str(found.file("report.html")) if found.has("report.html") else None
    for name, face in _FACES.items():
        if found.has(name):
            if json:
                ask_document(_document(found, name))
            else:
                face(_document(found, name), console(), report_file)
            return
    import skerry

    summary = skerry.Scan(found).summary
    if json:
        ask_document(summary.document())
        return
    from skerry.report import terminal

    terminal(summary, console(), report=report_file)
    if found.has("twins.json"):
        from skerry.report.twins import twins_terminal

        twins = _document(found, "twins.json")
        console().print(twins_terminal(twins["twins"], twins["twin_costs"]))


def _document(run: Run, name: str) -> dict[str, Any]:
    import json

    return {**json.loads(run.text(name)), "run": str(run.path)}


def _tame(document: dict[str, Any], console: Console, report: str | None) -> None:
    from skerry.report import tame_terminal

    tame_terminal(document, console, report=report)


def _births(document: dict[str, Any], console: Console, report: str | None) -> None:
    from skerry.report.births_terminal import births_terminal

    births_terminal(document, console)


def _study(document: dict[str, Any], console: Console, report: str | None) -> None:
    from skerry.report.study_terminal import study_terminal

    study_terminal(document, console, report=report)


def _pareto(document: dict[str, Any], console: Console, report: str | None) -> None:
    from skerry.report.pareto_terminal import pareto_terminal

    pareto_terminal(document, console)


# The document that a kind of run has, and its face; every other run is of a model.
_FACES = {"tame.json": _tame, "births.json": _births, "study.json": _study, "optimize.json": _pareto}


def report(run: str, /, *, out: str | None = None) -> None:
    """Write the report of a finished run.

    Parameters
    ----------
    run
        The run directory.
    out
        Copy the report to this file; by default it stays in the run and its path is printed.
    """
    import shutil

    from skerry.run import Run
    from skerry.written import write_report

    found = Run.open(run)
    if found.has("study.json"):
        from skerry.report.study_html import write_study_report

        path = write_study_report(found)
    else:
        path = write_report(found).file("report.html")
    print(shutil.copyfile(path, out) if out else path)
