"""A trace in sentences: where outliers come from, what they cause, what sinks are for, and what the claims say.

Every sentence selects and rounds numbers of the run's tables. What was not measured is said to be so or left out, never filled in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from . import formatting as f
from .effect_charts import controls, dose_rows, strongest
from .lifecycle_cards import MOST_WEIGHTS, signed_percent
from .trace_data import NAMED, Row, Trace, interval, known, part_name

VERDICTS = ("refuted", "supported", "inconclusive", "not applicable")
_UNIT = {"loss": " nats per token", "kl": " nats per token", "distance": "", "sink mass": ""}
_TOLD = 4
_SIBLINGS = 3


def trace_words(trace: Trace) -> list[str]:
    """The whole trace, a paragraph for each question that it answered."""
    paragraphs = [origin_words(trace), effect_words(trace), role_words(trace), claim_words(trace.claims)]
    return [p for p in paragraphs if p]


def origin_words(trace: Trace) -> str:
    """Where the outliers come from; empty when no trace was made."""
    return " ".join(origin_paragraphs(trace))


def origin_paragraphs(trace: Trace) -> list[str]:
    """The same, one paragraph for each birth (block and neuron), the most extreme first."""
    if not trace.traced:
        return []
    if not trace.carriers:
        return [
            "No outlier of the residual stream was found, so there is no birth, plateau or end to follow."
        ]
    shown = trace.families()[:_TOLD]
    told = [carrier_words(trace, number) for number in shown]
    rest = len(trace.carriers) - sum(1 + len(trace.siblings(n)[:_SIBLINGS]) for n in shown)
    if rest > 0:
        told.append(
            f"{f.count(rest, 'other outlier')} of the residual stream {'is' if rest == 1 else 'are'} in the table."
        )
    return told


def carrier_words(trace: Trace, number: int) -> str:
    """One outlier: birth, who wrote it, where it sits, how it ends."""
    c = trace.carrier(number)
    sentences = [_birth(trace, c), _size(trace, c), _amplifier(trace, c), _end(trace, c), _siblings(trace, c)]
    return " ".join(s for s in sentences if s)


def _birth(trace: Trace, c: Row) -> str:
    name, number = f"Channel {c['channel']}", c["carrier"]
    writers = trace.writers(number, "birth")
    against = [r for r in trace.growth(number, "birth", "block") if r["share"] <= -0.05]
    rest = [f"{part_name(r['part'])} {f.percent(r['share'])}" for r in writers[1:] if r["share"] >= 0.05][:3]
    if c["birth_layer"] is None:
        parts = [f"{part_name(r['part'])} {f.percent(r['share'])}" for r in writers[:1]] + rest
        told = f" ({f.listing(parts)})" if parts else ""
        return f"{name} is there from the start: the embedding already has it{told}."
    start = f"{name} is born in block {c['birth_layer']}"
    if not writers:
        return f"{start}; what wrote it was not measured."
    text = f"{start}: {f.percent(writers[0]['share'])} of its growth is written by {_the(writers[0]['part'])}"
    text += f" ({f.listing(rest)})" if rest else ""
    if against:
        taken = [f"{signed_percent(r['share'])} by {_the(r['part'])}" for r in against]
        text += f", against {f.listing(taken)}"
    told = _unit(trace, c)
    return f"{text}{f'; {told}' if told else ''}."


def _the(part: str | None) -> str:
    name = part_name(part)
    return name if name.startswith("the ") or name == "attention" else f"the {name}"


def _unit(trace: Trace, c: Row) -> str:
    """The unit that the trace names, and the weight entries."""
    number = c["carrier"]
    unit, weights = trace.unit(number), [w for w in trace.weights(number) if w["value"] is not None]
    through = ""
    if weights:
        w = weights[0]
        expert = f"[{w['expert']}]" if w["expert"] is not None else ""
        through = f"w.down{expert}[{w['row']}, {w['column']}] = {f.number(w['value'])}"
    heads = [r for r in trace.growth(number, "birth", "head") if r["index"] is not None]
    if unit is not None and unit["unit"] == "head" and unit["index"] is not None:
        return f"head {unit['index']} alone writes {f.percent(unit['share'])}"
    if unit is not None and unit["unit"] in ("neuron", "weight") and unit["index"] is not None:
        expert = f" of expert {unit['expert']}" if unit["expert"] is not None else ""
        alone = f"neuron {unit['index']}{expert} alone writes {f.percent(unit['share'])}"
        return f"{alone} through {through}" if through else alone
    if unit is not None and unit["unit"] == "expert" and unit["index"] is not None:
        return f"expert {unit['index']} alone writes {f.percent(unit['share'])}"
    if 1 < len(weights) <= MOST_WEIGHTS:
        last = weights[-1]["cumulative"]
        share = f" carry {f.percent(last)} of it" if known(last) else " carry most of it"
        return f"{len(weights)} entries of w.down{share}, neurons {f.listing((str(w['column']) for w in weights), limit=4)} first"
    attention = next(iter(trace.writers(number, "birth")), None)
    if attention is not None and attention["part"] == "attn.out" and heads:
        return f"head {heads[0]['index']} writes most, {signed_percent(heads[0]['share'])}"
    return "no single head, neuron or weight writes most of it" if unit is not None else ""


def _size(trace: Trace, c: Row) -> str:
    if not known(c["peak"]) or c["peak_layer"] is None:
        return ""
    times = f", {f.ratio(c['ratio'])} times the median" if known(c["ratio"]) else ""
    tokens = f.listing(trace.tokens(c["carrier"]), limit=3)
    where = f" Its tokens: {tokens}." if tokens else ""
    return f"It reaches {f.number(c['peak'])} behind block {c['peak_layer']}{times}.{where}"


def _amplifier(trace: Trace, c: Row) -> str:
    """The quadratic amplifier, where both factors were measured."""
    factors = trace.factors(c["carrier"])
    gate, up, product = (factors.get(k) for k in ("gate", "up", "product"))
    if (
        gate is None
        or up is None
        or product is None
        or any(not known(r[k]) for r in (gate, up, product) for k in ("value", "other"))
    ):
        return ""
    return (
        f"There the neuron's gate is {f.number(gate['value'])} (size at other tokens {f.number(gate['other'])}) and its up projection "
        f"{f.number(up['value'])} ({f.number(up['other'])}); their product is {f.number(product['value'])} ({f.number(product['other'])})."
    )


def _end(trace: Trace, c: Row) -> str:
    if c["exit_layer"] is None:
        return "No block takes it away." if c["birth_layer"] is not None or known(c["peak"]) else ""
    text = f"Block {c['exit_layer']} takes it away"
    if known(c["cancellation"]):
        text += f": it writes {f.percent(c['cancellation'])} of what it received with the opposite sign"
    writers = trace.writers(c["carrier"], "exit")
    if writers:
        text += f", {f.percent(writers[0]['share'])} of that by {_the(writers[0]['part'])}"
    neurons = [
        r
        for r in trace.growth(c["carrier"], "exit", "neuron")
        if r["index"] is not None and r["share"] >= NAMED
    ][:2]
    if neurons:
        text += (
            f", neuron{'s' if len(neurons) > 1 else ''} {f.listing(str(r['index']) for r in neurons)} first"
        )
    return f"{text}."


def _siblings(trace: Trace, c: Row) -> str:
    others = trace.siblings(c["carrier"])[:_SIBLINGS]
    if not others:
        return ""
    names = f.listing(
        f"channel {o['channel']}" + (f" ({f.number(o['peak'])})" if known(o["peak"]) else "") for o in others
    )
    return f"The same neuron also writes {names}."


def effect_words(trace: Trace) -> str:
    """What the outliers cause; empty when no intervention was made."""
    if "effects" not in trace.rows:
        return ""
    if not trace.effects():
        return "No intervention could be made, so nothing is said of what the outliers cause."
    return " ".join(s for s in (_damage(trace), _chain(trace), dose_words(trace), _paths(trace)) if s)


def _against(trace: Trace, row: Row) -> str:
    """What the controls did, beside an effect."""
    grey = controls(trace, row)
    if not grey:
        return ""
    most = max(abs(r["change"]) for r in grey)
    return f"; {f.count(len(grey), 'matched control')} changed it by at most {f.number(most)}"


def _change(row: Row) -> str:
    return f"{'+' if row['change'] > 0 else ''}{f.number(row['change'])}{interval(row)}{_UNIT.get(row['outcome'], '')}"


def _damage(trace: Trace) -> str:
    outcome = trace.damage
    rows = (
        strongest([r for g in ("birth", "super weight") for r in trace.effects(g, outcome)])
        if outcome
        else []
    )
    if not rows:
        return ""
    told = [f"“{f.tidy(r['arm'])}” {_change(r)}" for r in sorted(rows, key=lambda r: -abs(r["change"]))[:4]]
    first = max(rows, key=lambda r: abs(r["change"]))
    name = {"distance": "distance of the last hidden states"}.get(outcome or "", outcome)
    note = " (the model has no head that gives a loss)" if outcome == "distance" else ""
    return f"Change of the {name}{note} by interventions on the outlier: {f.listing(told)}{_against(trace, first)}."


def _chain(trace: Trace) -> str:
    rows = trace.effects("birth", "sink mass")
    if not rows:
        return ""
    r = max(rows, key=lambda r: abs(r["change"]))
    if not known(r["clean"]) or not known(r["value"]):
        return ""
    place = f" of block {r['outcome_layer']}" if r["outcome_layer"] is not None else ""
    return f"With “{f.tidy(r['arm'])}” the sink mass{place} goes from {f.percent(r['clean'])} to {f.percent(r['value'])}{_against(trace, r)}."


def dose_words(trace: Trace) -> str:
    """The dose-response curve of the damage in one sentence; empty without one."""
    rows = dose_rows(trace, trace.damage) if trace.damage else []
    if len(rows) < 2:
        return ""
    told = f.listing(f"{f.number(r['change'])} at {f.number(r['dose'])}" for r in rows)
    return f"By factor on the outlier, the {trace.damage} changes by {told}."


def _paths(trace: Trace) -> str:
    rows = strongest(trace.effects("path", "sink mass")) or (
        strongest(trace.effects("path", trace.damage)) if trace.damage else []
    )
    if not rows:
        return ""
    told = f.listing(f"“{f.tidy(r['arm'])}” {_change(r)}" for r in rows)
    return (
        f"When the change reaches only a part of what follows, the {rows[0]['outcome']} changes so: {told}."
    )


def role_words(trace: Trace) -> str:
    """What sinks are for; empty when it was not asked."""
    if "role_verdicts" not in trace.rows:
        return ""
    verdicts = [r for r in trace["role_verdicts"] if r["verdict"]]
    if not verdicts:
        return "No head with a sink was there to ask, so no role is told."
    sentences = []
    model = next((r for r in verdicts if r["level"] == "model"), None)
    if model is not None:
        why = f": {f.tidy(model['why']).rstrip('.')}" if model["why"] else ""
        sentences.append(f"For the whole model the verdict is {_verdict(model)}{why}.")
    heads = Counter(r["verdict"] for r in verdicts if r["level"] == "head")
    if heads:
        told = f.listing(f"{n:,} {f.tidy(v)}" for v, n in heads.most_common())
        sentences.append(
            f"Of {f.count(sum(heads.values()), 'head')} with a sink that {'was' if sum(heads.values()) == 1 else 'were'} asked: {told}."
        )
    return " ".join(sentences)


def _verdict(row: Row) -> str:
    strength = (
        f" (strength {f.number(row['strength'], digits=2)}{interval(row, digits=2)})"
        if known(row["strength"])
        else ""
    )
    return f"{f.tidy(row['verdict'])}{strength}"


def claim_words(claims: Sequence[Row] | None) -> str:
    """How many claims hold, fail or stay open; empty when none were judged."""
    if not claims:
        return ""
    count = Counter(str(c["verdict"]) for c in claims)
    known_first = [v for v in VERDICTS if v in count] + [v for v in count if v not in VERDICTS]
    told = f.listing(f"{count[v]} {f.tidy(v)}" for v in known_first)
    refuted = [f.tidy(str(c["id"])) for c in claims if c["verdict"] == "refuted"]
    names = f" On this model the data speak against {f.listing(refuted)}." if refuted else ""
    return f"Of {f.count(len(claims), 'published statement')}: {told}.{names}"
