"""skerry claims."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import Asked, ask_document, progress_of

DEFAULTS = Asked()


def claims(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
) -> None:
    """Test what the literature says about outliers on this model.

    Parameters
    ----------
    model
        A folder, a hub id, a .gguf file or a name that `skerry zoo` lists; or the directory of a run, of which what it holds is judged. The built-in decoder `pebble` by default.
    asked
        What to do.
    only
        Ids or patterns of ids, e.g. `3.*`. Only what they need is measured.
    list_
        List the claims and measure nothing.
    """
    asked.check()
    from skerry.claims import document, list_claims

    if list_:
        rows = list_claims(only or None)
        if asked.json:
            ask_document({"schema": 1, "claims": rows})
            return
        from skerry.cli.console import console
        from skerry.report import claims_list

        console().print(claims_list(rows))
        return
    with progress_of(asked) as progress:
        import skerry

        done = skerry.claims(model, asked.text, only=only or None, progress=progress, **asked.options())
    if asked.json:
        ask_document({"run": str(done.run.path), **document(done.results)})
        return
    from skerry.cli.console import console
    from skerry.report import claims_terminal

    report = str(done.run.file("report.html")) if done.run.has("report.html") else None
    claims_terminal(done.results, console(), report=report)
