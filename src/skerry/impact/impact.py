"""The stages that price what a scan found: the whole model quantized, every place alone, clipping, pruning.

Each writes its tables into the run of the scan and is skipped when they are there; `impact` puts them together as one document.
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

from skerry.errors import UnknownOption
from skerry.impact.clipping import price_clipping
from skerry.impact.document import CLIPPING_STAGE, GRID_STAGE, PRUNING_STAGE, SITES_STAGE, impact_document
from skerry.impact.inputs import Split, split
from skerry.impact.price_grid import GRID, price_grid
from skerry.impact.price_sites import price_sites
from skerry.impact.pruning_stage import price_pruning
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.outliers.finding import Summary
from skerry.outliers.options import Options
from skerry.outliers.plan import Plan
from skerry.outliers.scan import scan
from skerry.run import Progress, Run, Silent
from skerry.run.pruning_tables import PRUNING_TABLES
from skerry.run.tables import from_rows

# Changes whenever a stage would measure something else: old results are measured again.
VERSION = 1
SITE_SCHEMES = ("w8a8-tensor", "w4a4")
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class ImpactOptions:
    """What is priced.

    Attributes:
        schemes: Schemes of the whole model; None for the usual ones.
        site_schemes: Schemes under which every place is priced; None for the usual ones.
        grid: Price the whole model.
        per_site: Price every place alone.
        clipping: Clip, beside the control.
        pruning: Prune, and see what outliers do to the choice.
    """

    schemes: tuple[str, ...] | None = None
    site_schemes: tuple[str, ...] | None = None
    grid: bool = True
    per_site: bool = True
    clipping: bool = True
    pruning: bool = True

    def check(self) -> None:
        """Refuse schemes that mean nothing, before anything is loaded.

        Raises:
            UnknownOption: Naming the piece, or: nothing is to be done.
        """
        for text in (*self.of_model(), *self.of_sites()):
            Scheme.parse(text)
        if not (self.grid or self.per_site or self.clipping or self.pruning):
            raise UnknownOption("nothing is left to price: grid, per_site, clipping and pruning are all off")

    def of_model(self) -> tuple[str, ...]:
        """Schemes of the whole model."""
        return GRID if self.schemes is None else self.schemes

    def of_sites(self) -> tuple[str, ...]:
        """Schemes of places."""
        return SITE_SCHEMES if self.site_schemes is None else self.site_schemes

    def plain(self) -> dict[str, Any]:
        """As plain values; two ways to write a scheme are one."""
        return {
            "schemes": [str(Scheme.parse(s)) for s in self.of_model()],
            "site_schemes": [str(Scheme.parse(s)) for s in self.of_sites()],
            "grid": self.grid,
            "per_site": self.per_site,
            "clipping": self.clipping,
            "pruning": self.pruning,
        }


def impact(
    model: str | Path | nn.Module | None = None,
    data: Any = None,
    options: Options | None = None,
    wanted: ImpactOptions | None = None,
    progress: Progress | None = None,
    *,
    asked: str | None = None,
    asked_impact: str | None = None,
) -> Run:
    """Scan a model, unless its run is there, and price its outliers into the same run.

    Args:
        model: As for `scan`.
        data: As for `scan`.
        options: As for `scan`.
        wanted: What to price.
        progress: Told how far it is.
        asked: Key by which a repeated scan finds its answer.
        asked_impact: Key by which a repeated request finds its answer.

    Raises:
        SkerryError: Whatever is wrong with model, text, options or disk; what was measured so far is kept.
    """
    wanted, progress = wanted or ImpactOptions(), progress or Silent()
    wanted.check()

    def then(run: Run, plan: Plan) -> None:
        impact_stages(run, plan, wanted, progress, asked=asked_impact)

    return scan(model, data, options, progress, asked=asked, then=then)


def impact_stages(
    run: Run, plan: Plan, wanted: ImpactOptions, progress: Progress, *, asked: str | None = None
) -> None:
    """All stages that price, on a run whose findings are there.

    Raises:
        UnknownOption: A scheme that this model cannot have; nothing was run for it then.
    """
    work = _Work(run, plan, wanted, progress)
    work.check()
    inputs = {"findings": run.record.stages["findings"].inputs, "impact": VERSION}
    plain = wanted.plain()
    stages: list[tuple[str, bool, dict[str, Any], Sequence[str], Callable[[], Mapping[str, Any]]]] = [
        (GRID_STAGE, wanted.grid, {"schemes": plain["schemes"]}, ["quantization_grid"], work.grid),
        (
            SITES_STAGE,
            wanted.per_site,
            {"schemes": plain["site_schemes"]},
            ["quantization_sites"],
            work.sites,
        ),
        (CLIPPING_STAGE, wanted.clipping, {}, ["clipping"], work.clipping),
        (PRUNING_STAGE, wanted.pruning, {}, list(PRUNING_TABLES), work.pruning),
    ]
    done = []
    for name, is_wanted, more, tables, do in stages:
        if is_wanted:
            key = plan.key(name, **inputs, **more)
            if not run.finished(name, key):
                _finish(run, name, key, tables, do)
            done.append(name)
    key = plan.key("impact", **inputs, **plain)
    if run.finished("impact", key) and run.record.stages["impact"].asked == asked:
        return
    document = impact_document(run, done)
    run.finish("impact", key, texts={"impact.json": json.dumps(document, allow_nan=False)}, asked=asked)


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
    """What the stages share: which inputs calibrate and which are scored."""

    def __init__(self, run: Run, plan: Plan, wanted: ImpactOptions, progress: Progress) -> None:
        self.run, self.plan, self.wanted, self.progress = run, plan, wanted, progress
        self.anatomy, self.seed = plan.anatomy, plan.options.seed

    def check(self) -> None:
        """Refuse what was asked for and this model cannot have; the usual schemes are left out one by one instead."""
        asked = [*(self.wanted.schemes or ()), *(self.wanted.site_schemes or ())]
        for scheme in map(Scheme.parse, asked):
            Simulation(scheme).check(self.anatomy, calibrated=False)

    @cached_property
    def inputs(self) -> Split:
        return split(self.plan.feed)

    def _notes(self) -> list[str]:
        return [self.inputs.note] if self.inputs.note else []

    def grid(self) -> dict[str, Any]:
        schemes = [Scheme.parse(s) for s in self.wanted.of_model()]
        rows = price_grid(
            self.anatomy,
            self.inputs.scoring,
            schemes,
            calibration=self.inputs.calibration,
            lenient=self.wanted.schemes is None,
            seed=self.seed,
            progress=self.progress,
        )
        skipped = Simulation(schemes[0]).skipped(self.anatomy) if schemes else []
        told = [f"left in full precision: {'; '.join(skipped)}"] if skipped else []
        refused = [f"{r['scheme']}: {r['note']}" for r in rows if r.get("note")]
        return {"quantization_grid": rows, "notes": [*self._notes(), *told, *refused]}

    def sites(self) -> dict[str, Any]:
        rows = price_sites(
            self.anatomy,
            self.inputs.pricing,
            [Scheme.parse(s) for s in self.wanted.of_sites()],
            calibration=self.inputs.calibration,
            findings=Summary.model_validate(self.run.summary_document()).findings,
            seed=self.seed,
            progress=self.progress,
        )
        return {"quantization_sites": rows, "notes": self._notes()}

    def clipping(self) -> dict[str, Any]:
        rows = price_clipping(
            self.anatomy,
            self.inputs.pricing,
            calibration=self.inputs.calibration,
            seed=self.seed,
            progress=self.progress,
        )
        return {"clipping": rows, "notes": self._notes()}

    def pruning(self) -> dict[str, Any]:
        inputs = [*self.inputs.calibration, *self.inputs.scoring]
        # Few inputs calibrate and are scored: then both lists are the same.
        inputs = self.inputs.scoring if self.inputs.note else inputs
        return dict(price_pruning(self.anatomy, inputs, seed=self.seed, progress=self.progress))


__all__ = ["ImpactOptions", "impact", "impact_stages"]
