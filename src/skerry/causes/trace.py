"""The stages of a trace: what a scan found is followed through the model, changed, and asked what it is for.

Stage `lifecycle` (birth, spread, end) reads the model; stages `effects` and `roles` change it while they measure. Each writes its tables
into the run of the scan and is skipped when they are there; `trace` puts them together as one document.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from skerry.anatomy import Site
from skerry.causes.carrier import Carrier, Places, SuperWeight
from skerry.causes.carriers import Found, find_carriers
from skerry.causes.document import trace_document
from skerry.causes.effects import measure_effects
from skerry.causes.gather import gather_many
from skerry.causes.growth import Event, decompose, growth_sites
from skerry.causes.outcome import Judge
from skerry.causes.roles import measure_roles
from skerry.causes.sinks import Sinks
from skerry.causes.spread import measure_spread
from skerry.outliers.finding import Finding, Summary
from skerry.outliers.options import Options
from skerry.outliers.plan import Plan
from skerry.outliers.scan import scan
from skerry.outliers.tabulate import token_texts
from skerry.run import Progress, Run, Silent
from skerry.run.cause_tables import CAUSE_TABLES
from skerry.run.tables import from_rows

# Changes whenever a stage would measure something else: old results are measured again.
VERSION = 1
LIFECYCLE_TABLES = (
    "carriers",
    "carrier_tokens",
    "lifecycle",
    "growth",
    "factors",
    "growth_weights",
    "units",
    "spread",
)
GROWTH_TABLES = ("growth", "factors", "growth_weights", "units")
EFFECT_TABLES = ("effects",)
ROLE_TABLES = ("roles", "role_verdicts", "role_measures")
# Vectors gathered for all carriers together, in numbers of four bytes: 512 MB.
GATHERED_AT_ONCE = 2**27
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class TraceOptions:
    """What a trace does beside following birth, spread and end.

    Attributes:
        effects: Intervene along the chain.
        roles: Ask what sinks are for.
    """

    effects: bool = True
    roles: bool = True

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {"effects": self.effects, "roles": self.roles}


def trace(
    model: str | Path | nn.Module | None = None,
    data: Any = None,
    options: Options | None = None,
    wanted: TraceOptions | None = None,
    progress: Progress | None = None,
    *,
    asked: str | None = None,
    asked_trace: str | None = None,
) -> Run:
    """Scan a model, unless its run is there, and trace its outliers into the same run.

    Args:
        model: As for `scan`.
        data: As for `scan`.
        options: As for `scan`.
        wanted: What to do beside birth, spread and end.
        progress: Told how far it is.
        asked: Key by which a repeated scan finds its answer.
        asked_trace: Key by which a repeated trace finds its answer.

    Raises:
        SkerryError: Whatever is wrong with model, text, options or disk; what was measured so far is kept.
    """
    wanted, progress = wanted or TraceOptions(), progress or Silent()

    def then(run: Run, plan: Plan) -> None:
        trace_stages(run, plan, wanted, progress, asked=asked_trace)

    return scan(model, data, options, progress, asked=asked, then=then)


def trace_stages(
    run: Run, plan: Plan, wanted: TraceOptions, progress: Progress, *, asked: str | None = None
) -> None:
    """All stages of a trace, on a run whose findings are there."""
    work = _Work(run, plan, progress)
    inputs = {"findings": run.record.stages["findings"].inputs, "trace": VERSION}
    stages: list[tuple[str, Sequence[str], Callable[[], Mapping[str, Any]]]] = [
        ("lifecycle", LIFECYCLE_TABLES, work.lifecycle)
    ]
    stages += [("effects", EFFECT_TABLES, work.effects)] if wanted.effects else []
    stages += [("roles", ROLE_TABLES, work.roles)] if wanted.roles else []
    for name, tables, do in stages:
        key = plan.key(name, **inputs)
        if not run.finished(name, key):
            _finish(run, name, key, tables, do)
    key = plan.key("trace", **inputs, **wanted.plain())
    if run.finished("trace", key) and run.record.stages["trace"].asked == asked:
        return
    run.finish(
        "trace", key, texts={"trace.json": json.dumps(trace_document(run), allow_nan=False)}, asked=asked
    )


def _finish(
    run: Run, name: str, key: str, tables: Sequence[str], do: Callable[[], Mapping[str, Any]]
) -> None:
    start = time.perf_counter()
    rows = dict(do())
    notes = [str(note) for note in rows.pop("notes", [])]
    run.finish(
        name,
        key,
        tables={table: from_rows(table, rows.get(table, [])) for table in tables},
        texts={f"{name}.json": json.dumps({"notes": notes})},
        seconds=time.perf_counter() - start,
    )


class _Work:
    """What the stages share: carriers and places are found once, and only when a stage needs them."""

    def __init__(self, run: Run, plan: Plan, progress: Progress) -> None:
        self.run, self.plan, self.progress = run, plan, progress
        self.anatomy, self.batches, self.seed = plan.anatomy, plan.feed, plan.options.seed

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return Summary.model_validate(self.run.summary_document()).findings

    @cached_property
    def found(self) -> Found:
        text = token_texts(self.plan.loaded.tokenizer)
        return find_carriers(self.anatomy, self.batches, self.findings, token_text=text)

    @cached_property
    def sinks(self) -> Sinks:
        learned = [s.layer for s in self.anatomy.weight_sites if s.part == "w.sink" and s.layer is not None]
        return Sinks.from_findings(self.findings, learned=learned)

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.anatomy)

    def lifecycle(self) -> dict[str, Any]:
        self.progress.start("following outliers", 3, "step")
        rows: dict[str, Any] = {name: list(found) for name, found in self.found.tables.items()}
        notes = list(self.found.notes)
        self.progress.advance()
        for grown in self._growth(self.found.carriers, self.found.places):
            notes += grown.pop("notes", [])
            for name in GROWTH_TABLES:
                rows.setdefault(name, []).extend(grown.get(name, []))
        self.progress.advance()
        spread = measure_spread(
            self.anatomy, self.batches, self.found.carriers, self.found.places, self.sinks, seed=self.seed
        )
        self.progress.advance()
        self.progress.done()
        return {**rows, "spread": spread["spread"], "notes": [*notes, *spread.get("notes", [])]}

    def _growth(self, carriers: Sequence[Carrier], places: Places) -> list[dict[str, Any]]:
        events: list[tuple[Carrier, Event]] = [(c, "birth") for c in carriers]
        events += [(c, "exit") for c in carriers if c.exit_layer is not None]
        wanted: dict[int, list[Site]] = {}
        for carrier, event in events:
            layer = carrier.birth_layer if event == "birth" else carrier.exit_layer
            wanted.setdefault(carrier.number, []).extend(growth_sites(self.anatomy, layer))
        width = 16 * self.anatomy.dims.hidden * max(1, len(events))
        limit = max(32, min(512, GATHERED_AT_ONCE // (2 * width)))
        gathered = gather_many(self.anatomy, self.batches, places, wanted, limit=limit) if wanted else {}
        return [decompose(self.anatomy, c, event, gathered[c.number], seed=self.seed) for c, event in events]

    def effects(self) -> Mapping[str, Any]:
        weights = [
            SuperWeight(r["carrier"], r["layer"], r["expert"], r["row"], r["column"], r["share"])
            for r in self.run.table("growth_weights").to_pylist()
        ]
        found = self.found
        return dict(
            measure_effects(
                self.anatomy,
                self.batches,
                found.carriers,
                found.places,
                weights,
                self.sinks,
                self.judge,
                findings=self.findings,
                seed=self.seed,
                progress=self.progress,
            )
        )

    def roles(self) -> Mapping[str, Any]:
        return dict(
            measure_roles(
                self.anatomy, self.batches, self.sinks, self.judge, seed=self.seed, progress=self.progress
            )
        )


__all__ = ["CAUSE_TABLES", "TraceOptions", "trace", "trace_stages"]
