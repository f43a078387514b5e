"""The embedded default beside its twins: what `skerry audit` without a model does behind the audit."""

from __future__ import annotations

from typing import Any

from skerry.outliers.options import Options
from skerry.run import Progress, Run


def with_twins(run: Run, data: Any, options: Options, progress: Progress | None) -> Run:
    """The run of the default with the comparison in it.

    Args:
        run: Its run.
        data: As it was given.
        options: As they were given.
        progress: Told how far it is.
    """
    from skerry.anatomy.builtins import DEFAULT, twins_of
    from skerry.outliers.scan import scan
    from skerry.redesign.twins import STAGE, compare_twins
    from skerry.run import Silent

    twins = twins_of(DEFAULT)
    if STAGE in run.record.stages or not twins:
        return run
    asked = run.record.stages["findings"].asked
    return scan(
        None,
        data,
        options,
        progress,
        asked=asked,
        then=lambda run, plan: compare_twins(run, plan, twins, progress or Silent()),
    )
