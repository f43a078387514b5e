"""What the pictures and sentences of a trace are made from: rows of the run's tables, picked and never computed.

A NaN in a table means the same as a null: it was not measured. Every face then leaves it out or says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from skerry.causes.document import trace_notes
from skerry.run.cause_tables import CAUSE_TABLES

from . import formatting as f

if TYPE_CHECKING:
    import pyarrow as pa

    from skerry.run import Run

Row = dict[str, Any]
TRACE_TABLES = ("carriers", "carrier_tokens", "lifecycle", "growth", "factors", "growth_weights", "units")
PART_NAMES = {
    "attn.out": "attention",
    "mlp.out": "feed-forward",
    "norm gain": "the norm's gain",
    "norm bias": "the norm's bias",
    "centre": "the norm's centring",
    "bias": "the bias",
    "rest": "the rest of the list",
}


@dataclass(frozen=True)
class Trace:
    """The tables of a trace as rows.

    Attributes:
        rows: Rows by table name; a table that the run does not have is absent (an empty one: looked for and not found).
        claims: Results of the claims as plain mappings; None where they were not run.
        notes: Statements of the trace about what could not be measured.
        model: Name of the model.
    """

    rows: Mapping[str, list[Row]]
    claims: list[Row] | None = None
    notes: tuple[str, ...] = ()
    model: str = ""

    def __getitem__(self, name: str) -> list[Row]:
        return self.rows.get(name, [])

    @property
    def traced(self) -> bool:
        """Whether a trace was made, found or not."""
        return "carriers" in self.rows

    @cached_property
    def carriers(self) -> list[Row]:
        """Carriers, the most extreme first."""
        return sorted(self["carriers"], key=lambda r: -(r["ratio"] or 0))

    @cached_property
    def num_layers(self) -> int:
        """Blocks that the trace saw; 0 without a lifecycle."""
        layers = [r["layer"] for r in (*self["lifecycle"], *self["spread"]) if r["layer"] is not None]
        return 1 + max(layers, default=-1)

    def carrier(self, number: int) -> Row:
        """The row of one carrier."""
        return next(r for r in self["carriers"] if r["carrier"] == number)

    def life(self, number: int, layer: int, site: str) -> Row | None:
        """What `lifecycle` says of one carrier at one place."""
        return next(
            (r for r in self["lifecycle"] if (r["carrier"], r["layer"], r["site"]) == (number, layer, site)),
            None,
        )

    def growth(self, number: int, event: str, level: str) -> list[Row]:
        """Contributions to the change of a carrier in a block, largest share first, unknown ones left out."""
        rows = [
            r
            for r in self["growth"]
            if (r["carrier"], r["event"], r["level"]) == (number, event, level) and r["share"] is not None
        ]
        return sorted(rows, key=lambda r: -abs(r["share"]))

    def unit(self, number: int, event: str = "birth") -> Row | None:
        """The unit that explains most with least."""
        rows = [r for r in self["units"] if (r["carrier"], r["event"]) == (number, event)]
        return next((r for r in rows if r["best"]), None)

    def weights(self, number: int) -> list[Row]:
        """Entries of the down projection that carry the growth, first ones first."""
        rows = [r for r in self["growth_weights"] if r["carrier"] == number]
        return sorted(rows, key=lambda r: r["rank"] if r["rank"] is not None else math.inf)

    def neuron(self, number: int, event: str = "birth") -> int | None:
        """The neuron that writes most of the change, if neurons were told apart."""
        rows = [r for r in self.growth(number, event, "neuron") if r["index"] is not None]
        if rows:
            return int(rows[0]["index"])
        found = [r["neuron"] for r in self["factors"] if (r["carrier"], r["event"]) == (number, event)]
        return next((int(n) for n in found if n is not None), None)

    def factors(self, number: int, event: str = "birth") -> dict[str, Row]:
        """The factors of that neuron by name."""
        neuron = self.neuron(number, event)
        return {
            r["factor"]: r
            for r in self["factors"]
            if (r["carrier"], r["event"], r["neuron"]) == (number, event, neuron)
        }

    def tokens(self, number: int) -> list[str]:
        """Where a carrier lives, most frequent first: `first token 52 %`, `. 40 %`. Inert text."""
        out = []
        rows = [r for r in self["carrier_tokens"] if r["carrier"] == number and r["share"] is not None]
        for r in sorted(rows, key=lambda r: -r["share"]):
            name = f.token_name(r["token"], r["token_id"])
            place = None if r["position"] is None else _position(r["position"])
            words = " ".join(w for w in (place, f"({name})" if place and name else name) if w)
            out.append(f"{words} {f.percent(r['share'])}" if words else f.percent(r["share"]))
        return out

    def spread(self, measure: str) -> list[Row]:
        """A measure of the spread by layer (whole layers; heads where only they were measured), in order."""
        rows = [r for r in self["spread"] if r["measure"] == measure and r["value"] is not None]
        whole = [r for r in rows if r["head"] is None]
        return sorted(whole or rows, key=lambda r: (r["layer"], r["head"] or 0))

    def effects(
        self, group: str | None = None, outcome: str | None = None, *, control: bool = False
    ) -> list[Row]:
        """Effects of a group on an outcome, of the interventions or of their controls."""
        return [
            r
            for r in self["effects"]
            if (group is None or r["group"] == group)
            and (outcome is None or r["outcome"] == outcome)
            and bool(r["control"]) == control
            and r["change"] is not None
        ]

    @cached_property
    def damage(self) -> str | None:
        """The outcome by which damage is told: loss where there is one, else kl, else the distance of hidden states."""
        known = {r["outcome"] for r in (*self["effects"], *self["roles"])}
        return next((o for o in ("loss", "kl", "distance") if o in known), None)

    def siblings(self, number: int) -> list[Row]:
        """Other carriers born in the same block through the same neuron."""
        key = self.carrier(number)["birth_layer"], self.neuron(number)
        return [
            c
            for c in self.carriers
            if c["carrier"] != number and (c["birth_layer"], self.neuron(c["carrier"])) == key
        ]

    def families(self) -> list[int]:
        """The most extreme carrier of every birth (block and neuron), most extreme first."""
        seen: dict[tuple[int | None, int | None], int] = {}
        for c in self.carriers:
            seen.setdefault((c["birth_layer"], self.neuron(c["carrier"])), c["carrier"])
        return list(seen.values())


def _position(position: int) -> str:
    return "first token" if position == 0 else f"position {position}"


def part_name(part: str | None) -> str:
    """A term of a block's sum in words."""
    return PART_NAMES.get(part or "", f.tidy(part or "unnamed"))


def unit_name(row: Row) -> str:
    """A unit in words: `neuron 7890`, `weight w.down[.., 7890]`, `head 3`, `feed-forward`."""
    expert = f" of expert {row['expert']}" if row["expert"] is not None and row["unit"] != "expert" else ""
    if row["unit"] == "sublayer" or row["index"] is None:
        return part_name(row["part"]) + expert
    return f"{'the weight of neuron' if row['unit'] == 'weight' else row['unit']} {row['index']}{expert}"


def interval(row: Mapping[str, Any], *, digits: int = 3) -> str:
    """` [low, high]`, or nothing where none was computed."""
    if row.get("low") is None or row.get("high") is None:
        return ""
    return f" [{f.number(row['low'], digits=digits)}, {f.number(row['high'], digits=digits)}]"


def known(x: float | int | None) -> bool:
    """Whether a number was measured and can be drawn."""
    return x is not None and math.isfinite(x)


def _clean(value: Any) -> Any:
    return None if isinstance(value, float | int) and math.isnan(value) else value


def from_tables(
    tables: Mapping[str, pa.Table],
    *,
    claims: Iterable[Any] | None = None,
    notes: Sequence[str] = (),
    model: str = "",
) -> Trace:
    """A trace from the tables of a run; `claims` are results as mappings or as objects with `model_dump`."""
    rows = {
        name: [{k: _clean(v) for k, v in row.items()} for row in tables[name].to_pylist()]
        for name in CAUSE_TABLES
        if name in tables
    }
    return Trace(rows, None if claims is None else [plain(c) for c in claims], tuple(notes), model)


def plain(claim: Any) -> Row:
    """A claim's result as a mapping."""
    body = claim if isinstance(claim, Mapping) else claim.model_dump(mode="json")
    return {k: _clean(v) for k, v in body.items()}


def from_run(run: Run) -> Trace:
    """A trace from a run's tables, the notes of its stages and `claims.json`, as far as they are there."""
    tables = {name: run.table(name) for name in run.table_names if name in CAUSE_TABLES}
    return from_tables(
        tables,
        claims=read_claims(run),
        notes=trace_notes(run),
        model=f.tidy(str(run.record.request.get("model", ""))),
    )


def read_claims(run: Run) -> list[Row] | None:
    """The results in `claims.json` (a list, or a document with a list under `claims` or `results`); None without the file."""
    if not run.has("claims.json"):
        return None
    told = json.loads(run.text("claims.json"))
    if isinstance(told, Mapping):
        told = told.get("claims", told.get("results", []))
    return [plain(c) for c in told]
