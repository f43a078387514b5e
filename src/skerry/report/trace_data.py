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
# Smaller shares of a block's sum are not told; the tables have them.
SEEN = 0.005
# A neuron or head is named beside its part when it carries at least so much of the change.
NAMED = 0.1
MOST_TOKENS = 3
# As in causes.spread: without massive activations, channels on fewer tokens than this share are followed.
FEW = 0.25
TRACE_TABLES = ("carriers", "carrier_tokens", "lifecycle", "growth", "factors", "growth_weights", "units")
PART_NAMES = {
    "attn.out": "attention",
    "mlp.out": "feed-forward",
    "norm gain": "the norm's gain",
    "norm bias": "the norm's bias",
    "centre": "the norm's centring",
    "bias": "the bias",
    "w.embed": "the token embedding",
    "w.position": "the position embedding",
    "w.type": "the segment embedding",
    "unexplained": "unexplained",
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
        num_tokens: Tokens of the text; None when not known.
    """

    rows: Mapping[str, list[Row]]
    claims: list[Row] | None = None
    notes: tuple[str, ...] = ()
    model: str = ""
    num_tokens: int | None = None

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

    def writers(self, number: int, event: str) -> list[Row]:
        """The terms of the block's sum that make the change, largest first: those of at least half a per cent."""
        rows = [r for r in self.growth(number, event, "block") if r["share"] >= SEEN]
        return sorted(rows, key=lambda r: -r["share"])

    def unit(self, number: int, event: str = "birth") -> Row | None:
        """The unit that explains most with least."""
        rows = [r for r in self["units"] if (r["carrier"], r["event"]) == (number, event)]
        return next((r for r in rows if r["best"]), None)

    def weights(self, number: int) -> list[Row]:
        """Entries of the down projection that carry the growth, first ones first."""
        rows = [r for r in self["growth_weights"] if r["carrier"] == number]
        return sorted(rows, key=lambda r: r["rank"] if r["rank"] is not None else math.inf)

    def neuron(self, number: int, event: str = "birth") -> int | None:
        """The neuron that writes most of the change, if neurons were told apart: the one whose factors are known, else the first."""
        found = [r["neuron"] for r in self["factors"] if (r["carrier"], r["event"]) == (number, event)]
        rows = [r for r in self.growth(number, event, "neuron") if r["index"] is not None]
        best = max(rows, key=lambda r: r["share"], default={"index": None})
        return next((int(n) for n in (*found, best["index"]) if n is not None), None)

    @cached_property
    def spreading(self) -> set[int]:
        """Carriers at whose tokens the spread was measured: massive activations; without any, channels bound to few tokens."""
        massive = {c["carrier"] for c in self["carriers"] if c["kind"] == "massive activation"}
        if massive or not self["carriers"]:
            return massive
        # Their tokens together; counted twice where they share some, so rather one too few than one too many.
        limit, together = FEW * (self.num_tokens or 0), 0
        out: set[int] = set()
        for c in sorted(self["carriers"], key=lambda r: r["carrier"]):
            together += c["num_tokens"] or 0
            if not out or together < limit:
                out.add(c["carrier"])
        return out

    def factors(self, number: int, event: str = "birth") -> dict[str, Row]:
        """The factors of that neuron by name."""
        neuron = self.neuron(number, event)
        return {
            r["factor"]: r
            for r in self["factors"]
            if (r["carrier"], r["event"], r["neuron"]) == (number, event, neuron)
        }

    def tokens(self, number: int) -> list[str]:
        """Which tokens carry it, most frequent first: `“[CLS]” 84 %`; and where, when one position has a fifth of them. Inert text."""
        rows = [r for r in self["carrier_tokens"] if r["carrier"] == number and r["share"] is not None]
        rows.sort(key=lambda r: -r["share"])
        names = [(f.token_name(r["token"], r["token_id"]), r["share"]) for r in rows]
        told = [f"“{name}” {f.percent(share)}" for name, share in names if name is not None]
        places = [r for r in rows if r["position"] is not None and r["share"] >= 0.2]
        return [
            *told[:MOST_TOKENS],
            *(f"{_position(r['position'])} {f.percent(r['share'])}" for r in places[:1]),
        ]

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

    def source(self, number: int) -> tuple[int | None, int] | None:
        """Block and neuron of a birth that one neuron carries; None for any other birth."""
        neuron = self.neuron(number)
        shares = [r["share"] for r in self.growth(number, "birth", "neuron") if r["index"] == neuron]
        named = neuron is not None and bool(shares) and shares[0] >= NAMED
        return (self.carrier(number)["birth_layer"], neuron) if named and neuron is not None else None

    def siblings(self, number: int) -> list[Row]:
        """Other carriers born in the same block through the same neuron."""
        mine = self.source(number)
        others = [c for c in self.carriers if c["carrier"] != number]
        return [] if mine is None else [c for c in others if self.source(c["carrier"]) == mine]

    def families(self) -> list[int]:
        """The most extreme carrier of every birth, most extreme first; births through one neuron are one."""
        seen: dict[object, int] = {}
        for c in self.carriers:
            seen.setdefault(self.source(c["carrier"]) or ("alone", c["carrier"]), c["carrier"])
        return list(seen.values())


def _position(position: int) -> str:
    return "at the first position" if position == 0 else f"at position {position}"


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
    num_tokens: int | None = None,
) -> Trace:
    """A trace from the tables of a run; `claims` are results as mappings or as objects with `model_dump`."""
    rows = {
        name: [{k: _clean(v) for k, v in row.items()} for row in tables[name].to_pylist()]
        for name in CAUSE_TABLES
        if name in tables
    }
    return Trace(
        rows, None if claims is None else [plain(c) for c in claims], tuple(notes), model, num_tokens
    )


def plain(claim: Any) -> Row:
    """A claim's result as a mapping."""
    body = claim if isinstance(claim, Mapping) else claim.model_dump(mode="json")
    return {k: _clean(v) for k, v in body.items()}


def from_run(run: Run) -> Trace:
    """A trace from a run's tables, the notes of its stages and `claims.json`, as far as they are there."""
    tables = {name: run.table(name) for name in run.table_names if name in CAUSE_TABLES}
    card = run.summary_document()["model"] if run.has("summary.json") else {}
    return from_tables(
        tables,
        claims=read_claims(run),
        notes=trace_notes(run),
        model=f.tidy(str(card.get("name", run.record.request.get("model", "")))),
        num_tokens=card.get("num_tokens"),
    )


def read_claims(run: Run) -> list[Row] | None:
    """The results in `claims.json` (a list, or a document with a list under `claims` or `results`); None without the file."""
    if not run.has("claims.json"):
        return None
    told = json.loads(run.text("claims.json"))
    if isinstance(told, Mapping):
        told = told.get("claims", told.get("results", []))
    return [plain(c) for c in told]
