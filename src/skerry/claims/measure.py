"""Measures what claims need and a run does not have yet: stages of a trace, of costs, of removal in the quantized model, of taming."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from skerry.claims.stages import IMPACT_STAGES, TRACE_STAGES
from skerry.run.tables import from_rows

if TYPE_CHECKING:
    from skerry.outliers.plan import Plan
    from skerry.run import Progress, Run

# What outliers are for in the quantized model is asked at the number of bits that everybody uses.
REMOVAL_SCHEME = "w8a8"
# The comparison of methods: per tensor, where the literature says that outliers hurt, with the bits of its statements.
COMPARED_SCHEMES = ("w8a8-tensor", "w6a6-tensor")
CALIBRATION, JUDGING = 32, 64
VERSION = 1


def measure_stages(run: Run, plan: Plan, stages: Collection[str], progress: Progress) -> None:
    """Run the stages that are named and not there.

    Args:
        run: A run whose findings are there.
        plan: What it was made from, with the model.
        stages: Names of `skerry.claims.stages.STAGES`.
        progress: Told how far it is.

    Raises:
        SkerryError: As the stages say; what was measured so far is kept.
    """
    if set(stages) & {*TRACE_STAGES}:
        from skerry.causes.trace import TraceOptions, trace_stages

        trace_stages(run, plan, TraceOptions("effects" in stages, "roles" in stages), progress)
    if wanted := {s for s in stages if s.startswith("impact_")} - {"impact_removal"}:
        from skerry.impact.impact import ImpactOptions, impact_stages

        options = ImpactOptions(
            grid="impact_grid" in wanted,
            per_site="impact_sites" in wanted,
            clipping="impact_clipping" in wanted,
            pruning="impact_pruning" in wanted,
        )
        impact_stages(run, plan, options, progress)
    if "impact_removal" in stages:
        _stage(run, plan, "impact_removal", lambda: _removal(run, plan, progress))
    if "tame" in stages:
        _stage(run, plan, "tame", lambda: _comparison(plan, progress))


def _stage(run: Run, plan: Plan, name: str, do: Callable[[], Mapping[str, Any]]) -> None:
    key = plan.key(name, findings=run.record.stages["findings"].inputs, version=VERSION)
    if run.finished(name, key):
        return
    start = time.perf_counter()
    rows = dict(do())
    notes = [str(note) for note in rows.pop("notes", [])]
    run.finish(
        name,
        key,
        tables={table: from_rows(table, rows.get(table, [])) for table in IMPACT_STAGES[name]},
        texts={f"{name}.json": json.dumps({"notes": notes})},
        seconds=time.perf_counter() - start,
    )


def _removal(run: Run, plan: Plan, progress: Progress) -> dict[str, Any]:
    """The removal arms of the effects, with the model quantized all the while."""
    from skerry.causes.carriers import find_carriers
    from skerry.causes.effects import measure_effects
    from skerry.causes.outcome import Judge
    from skerry.causes.sinks import Sinks
    from skerry.impact.scheme import Scheme
    from skerry.impact.simulate import Simulation
    from skerry.outliers.finding import Summary

    scheme = Scheme.parse(REMOVAL_SCHEME)
    findings = Summary.model_validate(run.summary_document()).findings
    found = find_carriers(plan.anatomy, plan.feed, findings)
    with Simulation(scheme).open(plan.anatomy):
        measured = measure_effects(
            plan.anatomy,
            plan.feed,
            found.carriers,
            found.places,
            [],
            Sinks.from_findings(findings),
            Judge(plan.anatomy),
            findings=findings,
            seed=plan.options.seed,
            progress=progress,
            groups={"removal"},
        )
    rows = [{"scheme": str(scheme), **row} for row in measured["effects"]]
    return {"quantized_removal": rows, "notes": measured.get("notes", [])}


def _comparison(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Taming methods at several bits, on inputs of this run."""
    from skerry.errors import BadText
    from skerry.tame.memory import split
    from skerry.tame.study import compare_methods

    calibration, rest = split(plan.feed, CALIBRATION)
    judging, _ = split(rest, JUDGING)
    if not judging:
        raise BadText(
            f"methods are compared on inputs that they have not seen, and this run has only {CALIBRATION} or fewer; ask for more --samples"
        )
    return compare_methods(
        plan.anatomy,
        calibration,
        judging,
        schemes=COMPARED_SCHEMES,
        seed=plan.options.seed,
        tokenizer=plan.loaded.tokenizer,
        progress=progress,
    )
