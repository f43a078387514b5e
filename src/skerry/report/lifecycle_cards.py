"""What the lifecycle diagram of a carrier says, tensor by tensor: cards with bars and notes, before anything is drawn.

A number that the trace does not have is left out; a card of which nothing is known does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from . import formatting as f
from .trace_data import NAMED, SEEN, Row, Trace, known, part_name

Scale = Literal["size", "share", "ratio"]
MOST_WEIGHTS = 16  # more entries than this are a crowd, not super weights


@dataclass(frozen=True)
class Bar:
    """One bar: a number at the outlier's tokens, or at others.

    Attributes:
        value: Its signed value; the bar shows its size.
        is_outlier: At the tokens that carry the outlier, else at others.
        scale: `size` on the picture's logarithmic scale, `share` from 0 to 1, `ratio` from 0 to 1 and cut above.
    """

    value: float | int
    is_outlier: bool
    scale: Scale = "size"

    @property
    def text(self) -> str:
        """The number as it is written."""
        return f.percent(self.value) if self.scale == "share" else f.number(self.value)


@dataclass(frozen=True)
class Card:
    """One tensor of the picture.

    Attributes:
        title: Its name.
        subtitle: Place in it.
        bars: Outlier token first.
        big: A number that stands alone (a weight).
        shares: Who wrote it: name and signed share.
        notes: Short lines below.
    """

    title: str
    subtitle: str = ""
    bars: tuple[Bar, ...] = ()
    big: str = ""
    shares: tuple[tuple[str, float | int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Story:
    """The whole picture: columns of cards for the birth, a row of cards for what follows, labels on the arrows.

    Attributes:
        title: The picture in a few words.
        birth_title: Heading of the upper part.
        birth: Columns; the cards of one are parallel (gate and up).
        labels: What is written on the arrow into each column but the first.
        after_title: Heading of the lower part.
        after: Cards.
        after_labels: What is written on the arrow into each of them.
    """

    title: str
    birth_title: str
    birth: list[list[Card]]
    labels: list[str]
    after_title: str
    after: list[Card] = field(default_factory=list)
    after_labels: list[str] = field(default_factory=list)


def pair(value: float | int | None, other: float | int | None, scale: Scale = "size") -> tuple[Bar, ...]:
    """Bars of a number at the outlier's tokens and at others, those that are known."""
    both = ((value, True), (other, False))
    return tuple(Bar(v, is_outlier, scale) for v, is_outlier in both if v is not None and known(v))


def story(trace: Trace, number: int) -> Story:
    """The picture of one carrier."""
    c = trace.carrier(number)
    columns, labels = birth(trace, c)
    after, after_labels = follow(trace, c)
    last, exit_layer = trace.num_layers - 1, c["exit_layer"]
    title = f"Channel {c['channel']}: from birth to {'end' if exit_layer is not None else 'the last block'}"
    start = 0 if c["birth_layer"] is None else c["birth_layer"] + 1
    stop = exit_layer if exit_layer is not None else last
    blocks = f"blocks {start} to {stop}" if stop > start else f"block {max(stop, 0)}"
    follows = f"What follows, {blocks}" if after and stop >= start else "What follows"
    return Story(title, _birth_title(trace, c), columns, labels, follows, after, after_labels)


def _birth_title(trace: Trace, c: Row) -> str:
    if c["birth_layer"] is None:
        return "Birth: already in the embedding"
    main = trace.writers(c["carrier"], "birth")
    where = f", {part_name(main[0]['part'])}" if main else ""
    return f"Birth: block {c['birth_layer']}{where}"


def birth(trace: Trace, c: Row) -> tuple[list[list[Card]], list[str]]:
    """Columns from what the block reads to the residual stream, and the labels of the arrows between them."""
    residual = residual_card(trace, c)
    terms = trace.growth(c["carrier"], "birth", "block")
    shares = {r["part"]: r["share"] for r in terms}
    attention, mlp = shares.get("attn.out", 0.0), shares.get("mlp.out", 0.0)
    # A sublayer that hardly took part has no picture here: the bars beside the stream say who wrote it.
    if c["birth_layer"] is None or (terms and max(attention, mlp) < NAMED):
        return [[residual]], []
    if attention > mlp:
        heads = head_card(trace, c)
        return ([[heads], [residual]], [_share(attention)]) if heads else ([[residual]], [])
    columns, labels = feed_forward(trace, c)
    return [*columns, [residual]], labels


def feed_forward(trace: Trace, c: Row) -> tuple[list[list[Card]], list[str]]:
    """Norm, gate and up, product, weight, as far as they were measured; one label for each arrow, the last one to the stream."""
    number, neuron = c["carrier"], trace.neuron(c["carrier"])
    first = [r for r in trace.growth(number, "birth", "neuron") if r["index"] == neuron]
    if first and first[0]["share"] < NAMED:
        share = next(
            (r["share"] for r in trace.growth(number, "birth", "block") if r["part"] == "mlp.out"), None
        )
        return [[crowd_card(trace, c)]], [_share(share)]
    factors = trace.factors(number)
    columns: list[list[Card]] = []
    labels: list[str] = []

    def add(cards: Sequence[Card | None], label: str) -> None:
        found = [card for card in cards if card is not None]
        if found:
            if columns:
                labels.append(label)
            columns.append(found)

    add([factor_card(factors, "norm", "mlp.in", "size of what the block reads")], "")
    inner = [
        factor_card(factors, "gate", "gate", f"neuron {neuron}", then="act(gate)"),
        factor_card(factors, "up", "up", f"neuron {neuron}"),
    ]
    add(inner, "")
    add(
        [factor_card(factors, "product", "mlp.down.in", f"neuron {neuron}")],
        "×" if factors.get("gate") else "",
    )
    add([weight_card(trace, c)], "")
    if columns:
        labels.append(signed_percent(first[0]["share"]) if first else "")
    return columns, labels


def _share(share: float | int | None) -> str:
    return f.percent(share) if share is not None and known(share) else ""


def signed_percent(share: float | int) -> str:
    """A share that may be negative; a vanishing one has no sign."""
    if abs(share) < 0.0005:
        return f.percent(abs(share))
    return f"−{f.percent(-share)}" if share < 0 else f.percent(share)


def factor_card(
    factors: dict[str, Row], name: str, title: str, subtitle: str, *, then: str = ""
) -> Card | None:
    """A factor at the outlier's tokens against others, with its alignment and its share of the growth; None when unknown."""
    row = factors.get(name)
    if row is None or row["value"] is None:
        return None
    notes = []
    acted = factors.get(then)
    if row["alignment"] is not None:
        other = (
            f", others {f.number(row['alignment_other'], digits=2)}"
            if row["alignment_other"] is not None
            else ""
        )
        notes.append(f"cosine with its weights {f.number(row['alignment'], digits=2)}{other}")
    if acted is not None and acted["value"] is not None:
        other = f", others {f.number(acted['other'])}" if acted["other"] is not None else ""
        notes.append(f"after activation {f.number(acted['value'])}{other}")
    share = (acted or row)["log_share"]
    if share is not None:
        notes.append(f"explains {signed_percent(share)} of the product")
    return Card(title, subtitle, pair(row["value"], row["other"]), notes=tuple(notes))


def weight_card(trace: Trace, c: Row) -> Card | None:
    """The entries of the down projection that carry the growth."""
    rows = [r for r in trace.weights(c["carrier"]) if r["value"] is not None]
    if not rows:
        only = trace.factors(c["carrier"]).get("weight")
        if only is None or only["value"] is None:
            return None
        return Card("w.down", f"[{c['channel']}, {only['neuron']}]", big=f"× {f.number(only['value'])}")
    first = rows[0]
    expert = f" of expert {first['expert']}" if first["expert"] is not None else ""
    notes = []
    if first["share"] is not None:
        notes.append(f"carries {signed_percent(first['share'])} of the growth")
    for r in rows[1 : 4 if len(rows) <= MOST_WEIGHTS else 1]:
        told = f": {signed_percent(r['share'])}" if r["share"] is not None else ""
        notes.append(f"[{r['row']}, {r['column']}] = {f.number(r['value'])}{told}")
    last = rows[-1]
    if len(rows) > 1 and last["cumulative"] is not None:
        notes.append(f"first {len(rows)} entries together {f.percent(last['cumulative'])}")
    return Card(
        f"w.down{expert}",
        f"[{first['row']}, {first['column']}]",
        big=f"× {f.number(first['value'])}",
        notes=tuple(notes),
    )


def crowd_card(trace: Trace, c: Row) -> Card:
    """The feed-forward when no neuron writes much by itself: the first ones."""
    rows = [r for r in trace.growth(c["carrier"], "birth", "neuron") if r["index"] is not None]
    rows.sort(key=lambda r: -r["share"])
    shares = tuple((f"neuron {r['index']}", r["share"]) for r in rows[:4])
    return Card(
        "mlp.out", f"channel {c['channel']}, by neuron", shares=shares, notes=("spread over many neurons",)
    )


def head_card(trace: Trace, c: Row) -> Card | None:
    """The heads that wrote it."""
    rows = trace.growth(c["carrier"], "birth", "head")
    if not rows:
        return None
    shares = tuple((f"head {r['index']}" if r["index"] is not None else "rest", r["share"]) for r in rows[:4])
    return Card("attn.out", f"channel {c['channel']}, by head", shares=shares)


def residual_card(trace: Trace, c: Row) -> Card:
    """The stream after the birth, who wrote it, and which other channels came the same way."""
    number, layer = c["carrier"], c["birth_layer"]
    row = trace.life(number, 0, "resid.in") if layer is None else trace.life(number, layer, "resid.out")
    before = None if layer is None else trace.life(number, layer, "resid.in")
    title = "embedding" if layer is None else f"{layer}.resid.out"
    notes = []
    if before is not None and before["value"] is not None:
        notes.append(f"before the block {f.number(before['value'])}")
    for other in trace.siblings(number)[:2]:
        there = None if layer is None else trace.life(other["carrier"], layer, "resid.out")
        value = f": {f.number(there['value'])}" if there is not None and there["value"] is not None else ""
        notes.append(f"also channel {other['channel']}{value}")
    shares = tuple(
        (part_name(r["part"]), r["share"])
        for r in trace.growth(number, "birth", "block")[:5]
        if abs(r["share"]) >= SEEN
    )
    bars = pair(row["value"], row["other"]) if row is not None else ()
    if not (bars or shares or notes):
        notes.append("no value was measured here")
    return Card(title, f"channel {c['channel']}", bars, shares=shares, notes=tuple(notes))


def follow(trace: Trace, c: Row) -> tuple[list[Card], list[str]]:
    """Plateau, keys, values and exit, those that were measured, and what is written on their arrows."""
    found = [(plateau_card(trace, c), "")]
    # The spread is measured at the tokens of some outliers; it says nothing of the others.
    if c["carrier"] in trace.spreading:
        found += [keys_card(trace, c), values_card(trace, c)]
    found.append(exit_card(trace, c))
    kept = [(card, label) for card, label in found if card is not None]
    return [card for card, _ in kept], [label for _, label in kept]


def plateau_card(trace: Trace, c: Row) -> Card | None:
    """The stream where the outlier is largest."""
    layer = c["peak_layer"]
    row = trace.life(c["carrier"], layer, "resid.out") if layer is not None else None
    value = row["value"] if row is not None else c["peak"]
    if value is None:
        return None
    notes = [f"{f.ratio(c['ratio'])} × the median |x|"] if known(c["ratio"]) else []
    if row is not None and known(row["norm"]) and known(row["norm_other"]):
        notes.append(f"norm of the token {f.number(row['norm'])}, others {f.number(row['norm_other'])}")
    return Card(
        f"{layer}.resid.out",
        "where it is largest",
        pair(value, row["other"] if row is not None else None),
        notes=tuple(notes),
    )


def _alive(trace: Trace, c: Row, measure: str) -> list[Row]:
    """A measure in the blocks that read the outlier: after its birth, up to its exit."""
    start = -1 if c["birth_layer"] is None else c["birth_layer"]
    stop = c["exit_layer"] if c["exit_layer"] is not None else trace.num_layers
    return [r for r in trace.spread(measure) if start < r["layer"] <= stop]


def _place(row: Row) -> str:
    return f"block {row['layer']}" + (f", head {row['head']}" if row["head"] is not None else "")


def _range(rows: Sequence[Row], show: object) -> list[str]:
    if len(rows) < 2:
        return []
    low, high = (pick(r["value"] for r in rows) for pick in (min, max))
    text = (f.percent(low), f.percent(high)) if show == "share" else (f.number(low), f.number(high))
    return [f"{text[0]} to {text[1]} over the blocks"] if text[0] != text[1] else []


def proof(trace: Trace, c: Row, outcome: str) -> list[str]:
    """What became of an outcome when the birth was changed most: one line, or none. Told of the most extreme birth alone."""
    first = trace.carriers[0]["birth_layer"] if trace.carriers else None
    rows = trace.effects("birth", outcome) if c["birth_layer"] == first else []
    if not rows:
        return []
    r = max(rows, key=lambda r: abs(r["change"]))
    if r["clean"] is None or r["value"] is None:
        return []
    show = f.percent if outcome == "sink mass" else f.number
    place = f" (block {r['outcome_layer']})" if r["outcome_layer"] is not None else ""
    where = "" if r["layer"] is None else " at the birth"
    return [f"with “{f.tidy(r['arm'])}”{where}: {show(r['clean'])} → {show(r['value'])}{place}"]


def keys_card(trace: Trace, c: Row) -> tuple[Card | None, str]:
    """How much attention its tokens draw, where they draw most."""
    rows = _alive(trace, c, "attention mass")
    if not rows:
        return None, ""
    r = max(rows, key=lambda r: r["value"])
    logit = next(
        (x for x in _alive(trace, c, "logit share") if (x["layer"], x["head"]) == (r["layer"], r["head"])),
        None,
    )
    notes = _range(rows, "share")
    if logit is not None:
        notes.append(f"explains {signed_percent(logit['value'])} of the logit")
    card = Card(
        "keys: attention",
        f"{_place(r)}; lower bar: equal attention",
        pair(r["value"], r["other"], "share"),
        notes=(*notes, *proof(trace, c, "sink mass")),
    )
    return card, "keys"


def values_card(trace: Trace, c: Row) -> tuple[Card | None, str]:
    """How small the value vectors of its tokens are, where they are smallest."""
    rows = _alive(trace, c, "value norm ratio")
    if not rows:
        return None, ""
    r = min(rows, key=lambda r: r["value"])
    bars = (Bar(r["value"], True, "ratio"), Bar(1.0 if r["other"] is None else r["other"], False, "ratio"))
    notes = (*_range(rows, "number"), *proof(trace, c, "value norm ratio"))
    return Card("values: norm", f"{_place(r)}, others = 1", bars, notes=notes), "values"


def exit_card(trace: Trace, c: Row) -> tuple[Card | None, str]:
    """What takes the outlier away; None for an outlier that stays."""
    layer, number = c["exit_layer"], c["carrier"]
    if layer is None:
        return None, ""
    row, before = trace.life(number, layer, "resid.out"), trace.life(number, layer, "resid.in")
    notes = []
    if before is not None and before["value"] is not None:
        notes.append(f"received {f.number(before['value'])}")
    if known(c["cancellation"]):
        notes.append(f"takes back {f.percent(c['cancellation'])} of it")
    neurons = [
        r for r in trace.growth(number, "exit", "neuron") if r["index"] is not None and r["share"] >= NAMED
    ][:2]
    if neurons:
        told = ", ".join(f"{r['index']} ({signed_percent(r['share'])})" for r in neurons)
        notes.append(f"neuron{'s' if len(neurons) > 1 else ''} {told}")
    bars = pair(row["value"], row["other"]) if row is not None else ()
    shares = tuple(
        (part_name(r["part"]), r["share"])
        for r in trace.growth(number, "exit", "block")[:3]
        if abs(r["share"]) >= SEEN
    )
    return Card(f"{layer}.resid.out", "exit", bars, shares=shares, notes=tuple(notes)), "opposite sign"
