"""The report of a run, written into it when what it holds has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry.outliers.finding import Summary
from skerry.run import Run

if TYPE_CHECKING:
    import pyarrow as pa


def write_report(run: Run) -> Run:
    """Write `report.html` into a run, unless one of all that the run holds now is there.

    Raises:
        NotPossible: A run of a kind that has no report.
    """
    if not (run.has("summary.json") or run.has("tame.json")):
        from skerry.errors import NotPossible

        raise NotPossible(
            f"a run like {run.path} has no report; `skerry show {run.path}` tells what it holds"
        )
    import hashlib
    import time

    import skerry
    from skerry.report import tame_html

    stages = {name: stage for name, stage in run.record.stages.items() if name != "report"}
    told = [(n, f, file.sha256) for n, stage in stages.items() for f, file in stage.files.items()]
    key = hashlib.sha256(repr((skerry.__version__, sorted(told))).encode()).hexdigest()[:16]
    if not run.finished("report", key):
        start = time.perf_counter()
        page = _page(run) if run.has("summary.json") else tame_html(run)
        with run.writing():
            run.finish("report", key, texts={"report.html": page}, seconds=time.perf_counter() - start)
    return run


def _page(run: Run) -> str:
    """The report of a scan and of whatever was added to its run."""
    from skerry.causes.document import trace_notes
    from skerry.report import html, read_claims
    from skerry.report.impact_data import stage_notes

    return html(
        Summary.model_validate(run.summary_document()),
        report_tables(run),
        record=dict(run.record.facts),
        claims=read_claims(run),
        notes=trace_notes(run),
        cost_notes=stage_notes(run),
    )


def report_tables(run: Run) -> dict[str, pa.Table]:
    """The tables as the report reads them: non-finite values of activations and weights together."""
    import pyarrow as pa

    tables = run.tables()
    parts = [tables[name] for name in ("nonfinite", "nonfinite_weights") if name in tables]
    return {**tables, "nonfinite": pa.concat_tables(parts)} if parts else tables
