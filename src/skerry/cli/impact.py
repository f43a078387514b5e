"""skerry impact."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import Asked, ask_document, progress_of

DEFAULTS = Asked()
Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]


def impact(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    schemes: Words = (),
    site_schemes: Words = (),
    grid: bool = True,
    per_site: bool = True,
    clipping: bool = True,
    pruning: bool = True,
) -> None:
    """What it costs to quantize, clip and prune a model, and what part of it outliers cause.

    Parameters
    ----------
    model
        A folder, a hub id, a .gguf file or a name that `skerry zoo` lists; the built-in decoder `pebble` by default.
    asked
        What to do.
    schemes
        Quantize the whole model so, e.g. `w8a8 w4a16-g128 w4a4kv4`; the usual eight by default.
    site_schemes
        Quantize every input and weight alone so; w8a8-tensor and w4a4 by default.
    grid
        Price the whole model.
    per_site
        Price every input and every weight alone, with and without its outliers.
    clipping
        Clip the largest values, beside as many random smaller ones moved as far.
    pruning
        Prune by magnitude, Wanda, OWL and SparseGPT, beside random weights.
    """
    asked.check()
    with progress_of(asked) as progress:
        import skerry

        done = skerry.impact(
            model,
            asked.text,
            schemes=schemes or None,
            site_schemes=site_schemes or None,
            grid=grid,
            per_site=per_site,
            clipping=clipping,
            pruning=pruning,
            progress=progress,
            **asked.options(),
        )
    if asked.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.impact_terminal import impact_terminal

    impact_terminal(done.document, console())
