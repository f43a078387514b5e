"""skerry runs, show, report."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import ask_document

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
    import skerry
    from skerry.answers import Tame, Watch
    from skerry.cli.console import console

    done = skerry.open_run(run)
    report_file = str(done.run.file("report.html")) if done.run.has("report.html") else None
    if isinstance(done, Tame):
        if json:
            ask_document(done.document)
            return
        from skerry.report import tame_terminal

        tame_terminal(done.document, console(), report=report_file)
        return
    if isinstance(done, Watch):
        if json:
            ask_document(done.document)
            return
        from skerry.report.births_terminal import births_terminal

        births_terminal(done.document, console())
        return
    if json:
        ask_document(done.summary.document())
        return
    from skerry.report import terminal

    terminal(done.summary, console(), report=report_file)


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

    import skerry
    from skerry.written import write_report

    path = write_report(skerry.open_run(run).run).file("report.html")
    print(shutil.copyfile(path, out) if out else path)
