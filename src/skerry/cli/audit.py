"""skerry audit."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from skerry.cli.asking import Asked, ask_document, progress_of

DEFAULTS = Asked()


def audit(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    trace: bool = True,
    effects: bool = False,
    roles: bool = False,
    impact: bool = False,
) -> None:
    """From a model to a finished report: every systematic outlier of activations, weights and attention, and its life.

    Parameters
    ----------
    model
        A folder, a hub id, a .gguf file or a name that `skerry zoo` lists. By default the built-in decoder `pebble`, beside its twins.
    asked
        What to do.
    trace
        Follow the outliers of the residual stream from birth to end.
    effects
        Intervene along the chain too: that takes minutes.
    roles
        Ask what attention sinks are for too: that takes minutes.
    impact
        Price quantization, clipping and pruning too: that takes minutes.
    """
    asked.check()
    with progress_of(asked) as progress:
        import skerry

        done = skerry.audit(
            model,
            asked.text,
            trace=trace,
            effects=effects,
            roles=roles,
            impact=impact,
            progress=progress,
            **asked.options(),
        )
    if asked.json:
        ask_document({**done.summary.document(), **done.twins})
        return
    from skerry.cli.console import console
    from skerry.report import terminal

    terminal(done.summary, console(), report=str(done.report))
    if done.twins:
        from skerry.report.twins import twins_terminal

        console().print(twins_terminal(done.twins["twins"], done.twins["twin_costs"]))
