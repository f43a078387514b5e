"""skerry scan."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import Asked, ask_document, progress_of

DEFAULTS = Asked()


def scan(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    export_mask: str | None = None,
) -> None:
    """From a model to its findings, without the report.

    Parameters
    ----------
    model
        A folder, a hub id, a .gguf file or a name that `skerry zoo` lists; the built-in decoder `pebble` by default.
    asked
        What to do.
    export_mask
        Write the tokens and channels that SAE training and steering should leave out to this JSON file.
    """
    asked.check()
    if export_mask is not None:
        check_writable(export_mask)
    with progress_of(asked) as progress:
        import skerry

        done = skerry.scan(model, asked.text, progress=progress, **asked.options())
    if export_mask is not None:
        done.mask.save(export_mask)
    if asked.json:
        ask_document(done.summary.document())
        return
    from skerry.cli.console import console
    from skerry.report import terminal

    terminal(done.summary, console())


def check_writable(path: str) -> None:
    """Refuse an export file that cannot be written, before the long work."""
    from pathlib import Path

    from skerry.errors import UnknownOption

    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UnknownOption(f"--export-mask {path}: there is no folder {folder}; make it first")
    if Path(path).is_dir():
        raise UnknownOption(f"--export-mask {path} is a folder; name a file")
