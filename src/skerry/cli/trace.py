"""skerry trace."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import Asked, ask_document, progress_of

DEFAULTS = Asked()


def trace(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    effects: bool = True,
    roles: bool = True,
    figures: str | None = None,
) -> None:
    """Where outliers come from, what follows from them, and what attention sinks are for.

    Parameters
    ----------
    model
        A folder, a hub id, a .gguf file or a name that `skerry zoo` lists; the built-in decoder `pebble` by default.
    asked
        What to do.
    effects
        Intervene along the chain, with controls: zero, mean, resample, dose, paths.
    roles
        Ask of every head with a sink what the sink is for.
    figures
        Write the pictures as SVG and PNG into this folder.
    """
    asked.check()
    if figures is not None:
        check_folder(figures)
    with progress_of(asked) as progress:
        import skerry

        done = skerry.trace(
            model, asked.text, effects=effects, roles=roles, progress=progress, **asked.options()
        )
    if figures is not None:
        from skerry.report import write_figures

        write_figures(done.run, figures)
    if asked.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report import trace_terminal

    trace_terminal(done.run, console())


def check_folder(path: str) -> None:
    """Refuse a folder that cannot be made, before the long work."""
    from pathlib import Path

    from skerry.errors import UnknownOption

    if Path(path).exists() and not Path(path).is_dir():
        raise UnknownOption(f"--figures {path} is a file; name a folder")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnknownOption(f"--figures {path} cannot be made: {error.strerror}") from error
