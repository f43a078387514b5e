"""What the pictures and sentences of costs and taming are made from: rows of a run's tables, picked and never computed.

A NaN in a table means the same as a null: it was not measured. A run of `skerry tame` alone has no scan; its `tame.json` says the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from skerry.run.impact_tables import IMPACT_TABLES
from skerry.run.pruning_tables import PRUNING_TABLES
from skerry.run.tame_tables import TAME_TABLES

from . import formatting as f
from .trace_data import Row, known

if TYPE_CHECKING:
    import pyarrow as pa

    from skerry.run import Run

COSTS = (*IMPACT_TABLES, *PRUNING_TABLES)
TAMING = tuple(TAME_TABLES)
ORIGINAL, FLOAT = "original", "float"
"""The untouched model in the grid, and the changed model before quantization."""
PLAIN = ("none", "rtn")
"""Methods that do nothing before rounding."""
UNITS = {
    "loss": "nats per token",
    "kl": "nats per token",
    "distance": "of the last hidden states, in variances",
}
FULL_BITS = 16.0


@dataclass(frozen=True)
class Costs:
    """The tables of `skerry impact` and `skerry tame` as rows.

    Attributes:
        rows: Rows by table name; a table that the run does not have is absent (an empty one: looked for and not found).
        notes: What of the costs could not be measured, and why.
        tame_notes: The same of taming.
        model: Name of the model.
        chosen: The method whose model was exported or would be; None where none was chosen.
        export: What was written, as plain values; None without an export.
        document: What `tame.json` says; empty without it.
    """

    rows: Mapping[str, list[Row]]
    notes: tuple[str, ...] = ()
    tame_notes: tuple[str, ...] = ()
    model: str = ""
    chosen: str | None = None
    export: Mapping[str, Any] | None = None
    document: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> list[Row]:
        return self.rows.get(name, [])

    @property
    def priced(self) -> bool:
        """Whether costs were measured."""
        return any(name in self.rows for name in COSTS)

    @property
    def tamed(self) -> bool:
        """Whether taming was tried."""
        return "methods" in self.rows

    # Costs ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def damage(self) -> str:
        """The outcome in which a change is priced: loss where there is one, else distance."""
        seen = {
            r["outcome"]
            for name in ("quantization_grid", "methods", "clipping", "pruning")
            for r in self[name]
        }
        return next((o for o in ("loss", "distance") if o in seen), "loss")

    @cached_property
    def grid(self) -> list[Row]:
        """Whole-model schemes, the dearest last."""
        rows = [r for r in self["quantization_grid"] if r["scheme"] != ORIGINAL and known(r["change"])]
        return sorted(rows, key=lambda r: r["change"])

    @cached_property
    def original(self) -> Row | None:
        """The untouched model on the same inputs."""
        return next((r for r in self["quantization_grid"] if r["scheme"] == ORIGINAL), None)

    @cached_property
    def sites(self) -> list[Row]:
        """What alone was quantized, the dearest first."""
        rows = [r for r in self["quantization_sites"] if known(r["change"])]
        return sorted(rows, key=lambda r: -r["change"])

    @cached_property
    def clipped(self) -> dict[str, list[Row]]:
        """Clipping by what was clipped: the curve, by quantile."""
        return _grouped((r for r in self["clipping"] if not r["control"]), "site", "quantile")

    def controls(self, site: str) -> dict[float, list[float]]:
        """Changes under the controls of clipping, by quantile."""
        out: dict[float, list[float]] = {}
        for r in self["clipping"]:
            if r["control"] and r["site"] == site and known(r["change"]):
                out.setdefault(r["quantile"], []).append(r["change"])
        return out

    @cached_property
    def pruned(self) -> dict[str, list[Row]]:
        """Pruning by method: change of the damage by sparsity."""
        rows = (r for r in self["pruning"] if r["outcome"] == self.damage)
        return _grouped(rows, "method", "sparsity")

    @cached_property
    def conflicts(self) -> dict[tuple[str, float], list[Row]]:
        """What outliers do to each method's choice: parts of the model by method and sparsity."""
        out: dict[tuple[str, float], list[Row]] = {}
        for r in self["pruning_conflict"]:
            out.setdefault((r["method"], r["sparsity"]), []).append(r)
        return out

    # Taming ---------------------------------------------------------------------------------------------------------------

    @cached_property
    def methods(self) -> dict[str, dict[str, list[Row]]]:
        """Rows by scheme and method, every seed, those that do nothing first; without what was refused."""
        out: dict[str, dict[str, list[Row]]] = {}
        for r in self["methods"]:
            if r["scheme"] is None or not known(r["change"]):
                continue
            out.setdefault(r["scheme"], {}).setdefault(r["method"], []).append(r)
        return {
            s: dict(sorted(found.items(), key=lambda item: item[0] not in PLAIN)) for s, found in out.items()
        }

    @cached_property
    def refused(self) -> list[Row]:
        """Methods that could not be run, with the reason in their note."""
        return [r for r in self["methods"] if not known(r["change"])]

    @cached_property
    def schemes(self) -> list[str]:
        """Schemes of the methods, fewest bits last; the float model first."""
        return sorted(self.methods, key=lambda s: (-bits(s), s))

    @cached_property
    def best(self) -> str | None:
        """The chosen method; without one the method that costs least under the scheme of fewest bits."""
        marked = next((r["method"] for r in self["methods"] if r["chosen"]), None)
        if (told := self.chosen or marked) is not None:
            return told
        rows = [r for r in self["methods"] if r["scheme"] != FLOAT and known(r["change"])]
        rows = [r for r in rows if r["scheme"] == self.schemes[-1]]
        return min(rows, key=lambda r: r["change"], default={"method": None})["method"]

    def seams(self, method: str | None = None) -> list[Row]:
        """What a method gave each seam it changed; of the best one by default."""
        name = self._shown("seam_changes") if method is None else method
        return [r for r in self["seam_changes"] if r["method"] == name and r["skipped"] is None]

    @cached_property
    def skipped(self) -> list[tuple[str, str, list[str]]]:
        """Method, reason, and the seams that were left alone for it."""
        out: dict[tuple[str, str], list[str]] = {}
        for r in self["seam_changes"]:
            if r["skipped"] is not None:
                out.setdefault((r["method"], r["skipped"]), []).append(r["seam"])
        return [(method, reason, seams) for (method, reason), seams in out.items()]

    def channels(self, seam: str | None = None) -> list[Row]:
        """Channel ranges before and after of a seam; of the one whose range shrinks most by default."""
        name = self._shown("channel_ranges")
        rows = [r for r in self["channel_ranges"] if r["method"] == name]
        if seam is None:
            there = {r["seam"] for r in rows}
            shrunk = [r for r in self.seams(name) if r["seam"] in there and _shrinks(r) is not None]
            best = max(shrunk, key=lambda r: _shrinks(r) or 0.0, default=None)
            seam = best["seam"] if best is not None else next(iter(r["seam"] for r in rows), None)
        return [r for r in rows if r["seam"] == seam]

    def _shown(self, table: str) -> str | None:
        """The method whose rows of a table are shown: the best one, or the first that has some."""
        names = [r["method"] for r in self[table]]
        return self.best if self.best in names else next(iter(names), None)


def _shrinks(r: Row) -> float | None:
    both = known(r["range_before"]) and known(r["range_after"]) and r["range_after"] > 0
    return r["range_before"] / r["range_after"] if both else None


def _grouped(rows: Iterable[Row], by: str, order: str) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for r in rows:
        if known(r["change"]) and known(r[order]):
            out.setdefault(r[by], []).append(r)
    return {name: sorted(found, key=lambda r: r[order]) for name, found in out.items()}


@cache
def bits(scheme: str) -> float:
    """Mean bits of weights and inputs under a scheme, as an order of schemes; 32 for the float model, 16 for what is left alone."""
    if scheme in (FLOAT, ORIGINAL):
        return 32.0
    from skerry.errors import UnknownOption
    from skerry.impact.scheme import Scheme

    try:
        found = Scheme.parse(scheme)
    except UnknownOption:
        return FULL_BITS
    parts = [found.weights, found.inputs]
    return sum(FULL_BITS if p is None else float(p.bits) for p in parts) / len(parts)


def ends(row: Mapping[str, Any], *, digits: int = 3) -> str:
    """` [low, high]` of a change, or nothing where none was computed."""
    if not (known(row.get("ci_low")) and known(row.get("ci_high"))):
        return ""
    return f" [{f.number(row['ci_low'], digits=digits)}, {f.number(row['ci_high'], digits=digits)}]"


def change(row: Mapping[str, Any], *, digits: int = 3) -> str:
    """A change with its sign and interval."""
    value = row.get("change")
    sign = "+" if known(value) and value is not None and value > 0 else ""
    return f"{sign}{f.number(value, digits=digits)}{ends(row, digits=digits)}"


def place(row: Mapping[str, Any]) -> str:
    """`3.mlp.down.in`, `3.w.down[5]`."""
    expert = f"[{row['expert']}]" if row.get("expert") is not None else ""
    return f"{row['layer']}.{f.tidy(str(row['site']))}{expert}"


def unit(outcome: str) -> str:
    """The unit of an outcome; empty where it has none."""
    return UNITS.get(outcome, "")


def _clean(value: Any) -> Any:
    """NaN as null; words on one line and without control characters, since every face shows them."""
    if isinstance(value, str):
        return f.tidy(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def costs_from_tables(
    tables: Mapping[str, pa.Table],
    *,
    notes: Sequence[str] = (),
    tame_notes: Sequence[str] = (),
    model: str = "",
    document: Mapping[str, Any] | None = None,
) -> Costs:
    """Costs from the tables of a run.

    Args:
        tables: By name; others than those of costs and taming are left.
        notes: What of the costs could not be measured, and why.
        tame_notes: The same of taming; the document's come with them.
        model: Name of the model.
        document: What `tame.json` says.
    """
    rows = {
        name: [{k: _clean(v) for k, v in row.items()} for row in tables[name].to_pylist()]
        for name in (*COSTS, *TAMING)
        if name in tables
    }
    told = document or {}
    for table, key in (("methods", "methods"), ("seam_changes", "seams"), ("equivalence", "equivalence")):
        if table not in rows and isinstance(told.get(key), list):
            columns = dict.fromkeys(TAME_TABLES[table])
            rows[table] = [{**columns, **{k: _clean(v) for k, v in r.items()}} for r in told[key]]
    chosen = told.get("chosen")
    if isinstance(chosen, Mapping):
        chosen = chosen.get("method")
    card = told.get("model") or {}
    name = card.get("name", "") if isinstance(card, Mapping) else str(card)
    taming = [*tame_notes, *(str(n) for n in told.get("notes", ()))]
    return Costs(
        rows=rows,
        notes=tuple(dict.fromkeys(f.tidy(n) for n in notes)),
        tame_notes=tuple(dict.fromkeys(f.tidy(n) for n in taming)),
        model=f.tidy(model or str(name)),
        chosen=None if chosen is None else f.tidy(str(chosen)),
        export=told.get("export"),
        document=told,
    )


def costs_from_run(run: Run) -> Costs:
    """Costs from a run's tables, the notes of its stages and `tame.json`, as far as they are there."""
    names = [name for name in run.table_names if name in (*COSTS, *TAMING)]
    document = json.loads(run.text("tame.json")) if run.has("tame.json") else None
    card = run.summary_document()["model"] if run.has("summary.json") else {}
    model = str(card.get("name", run.record.request.get("model", "")))
    return costs_from_tables(
        {name: run.table(name) for name in names}, notes=stage_notes(run), model=model, document=document
    )


def stage_notes(run: Run) -> list[str]:
    """What the stages of costs had to say beside their numbers, each once."""
    from skerry.impact.document import STAGES

    notes = [
        str(note)
        for stage in STAGES
        if run.has(f"{stage}.json")
        for note in json.loads(run.text(f"{stage}.json")).get("notes", ())
    ]
    return list(dict.fromkeys(notes))
