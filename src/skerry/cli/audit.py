"""skerry audit."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import Asked, ask_document, progress_of

DEFAULTS = Asked()


def audit(
    model: Annotated[str | None, Parameter(show_default=False)] = None, /, *, asked: Asked = DEFAULTS
) -> None:
    """From a model to a finished report: every systematic outlier of activations, weights and attention.

    Parameters
    ----------
    model
        A folder, a hub id or a .gguf file; a small real encoder by default.
    asked
        What to do.
    """
    asked.check()
    with progress_of(asked) as progress:
        import skerry

        done = skerry.audit(model, asked.text, progress=progress, **asked.options())
    if asked.json:
        ask_document(done.summary.document())
        return
    from skerry.cli.console import console
    from skerry.report import terminal

    terminal(done.summary, console(), report=str(done.report))
