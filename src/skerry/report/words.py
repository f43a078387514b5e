"""The summary in plain language: one paragraph, and one sentence for each section of the report.

Every sentence only selects and rounds what is in the summary. What was not measured is said to be so, never passed over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from skerry.outliers.finding import Finding, Summary

from . import formatting as f
from .groups import Group, group

_PLURAL = {
    "massive activation": "massive activations",
    "small sink value": "small sink values",
    "extreme logits": "heads with extreme logits",
}


def words(summary: Summary) -> str:
    """What was found, in one paragraph."""
    sentences = [
        _opening(summary),
        *_nonfinite(summary),
        *_channels(summary),
        *_massive(summary),
        *_neurons(summary),
        *_attention(summary),
        *_weights(summary),
        *_experts(summary),
        *_alignment(summary),
    ]
    return " ".join(sentences)


def headline(summary: Summary) -> str:
    """What was measured, in one line: model, size, text, dtype."""
    m = summary.model
    size = f"{f.count(m.num_layers, 'layer')} × {m.hidden_size:,} channels"
    experts = {s.expert for s in summary.profiles.sites if s.expert is not None}
    mixture = f", {len(experts)} experts" if experts else ""
    up_to = "up to " if m.num_tokens < m.num_samples * m.tokens_per_sample else ""
    return (
        f"{f.tidy(m.architecture)}, {size}{mixture}, {f.short(m.num_parameters)} parameters · "
        f"{f.count(m.num_samples, 'input')} of {up_to}{f.count(m.tokens_per_sample, 'token')} · {m.dtype} on {m.device}"
    )


def type_counts(summary: Summary) -> list[tuple[str, int]]:
    """How many findings of each type, in the order in which the types first appear."""
    return list(Counter(x.type for x in summary.findings).items())


def _opening(s: Summary) -> str:
    read = f"over {f.count(s.model.num_samples, 'input')} ({f.count(s.model.num_tokens, 'token')})"
    if not s.findings:
        return (
            f"No systematic outlier was found in {f.tidy(s.model.name)} {read}: no channel, weight or attention score stands out of "
            "its site again and again."
        )
    kinds = [f.count(n, t, _PLURAL.get(t)) for t, n in type_counts(s)]
    if len(s.findings) == 1:
        return f"One systematic outlier stands out of {f.tidy(s.model.name)} {read}."
    if len(kinds) == 1:
        return f"{kinds[0]} stand out of {f.tidy(s.model.name)} systematically, {read}."
    return f"{len(s.findings):,} systematic outliers stand out of {f.tidy(s.model.name)} {read}: {f.listing(kinds)}."


def _nonfinite(s: Summary) -> list[str]:
    """The warnings about NaN and infinity: they come before every other number."""
    marks = ("nan", "non-finite", "nonfinite", "infinit", " inf ")
    hits = [f.tidy(w).rstrip(".") for w in s.warnings if any(m in f"{w.lower()} " for m in marks)]
    return [f"Beware: {f.listing(hits, limit=2)}."] if hits else []


def _of(s: Summary, *types: str) -> list[Group]:
    return group(x for x in s.findings if x.type in types)


def _times(g: Group) -> str:
    low, high = g.ratios
    return f"{f.span(low, high)} times the median"


def _sign(g: Group) -> str:
    ranges = [x.range for x in g.findings if x.range is not None]
    if ranges and all(high < 0 for _, high in ranges):
        return ", never positive"
    if ranges and all(low > 0 for low, _ in ranges):
        return ", never negative"
    return ""


def _where(g: Group, s: Summary) -> str:
    return f" in {f.layers(g.layers, s.model.num_layers)}" if g.layers else " outside the layers"


def _residual(s: Summary) -> list[Group]:
    return [g for g in _of(s, "outlier channel") if g.key[2] == "residual"]


def _channels(s: Summary) -> list[str]:
    """The channels that stand out at all tokens, five by name: those of the stream itself, else those of what is added to it."""
    stream = group(x for x in s.findings if x.type == "outlier channel" and x.site.startswith("resid."))
    groups = sorted(stream or _residual(s), key=lambda g: (-len(g.layers), -g.ratios[1]))
    if not groups:
        return []
    first = groups[0]
    text = (
        f"Channel {first.first.channel} carries {_times(first)} of its site{_where(first, s)}{_sign(first)}"
    )
    by_place: dict[str, list[Group]] = defaultdict(list)
    for g in groups[1:5]:
        by_place[_where(g, s)].append(g)
    for place, members in by_place.items():
        names = f.listing(str(g.first.channel) for g in members)
        low, high = min(g.ratios[0] for g in members), max(g.ratios[1] for g in members)
        verb = "channel" if len(members) == 1 else "channels"
        reach = "reaches" if len(members) == 1 else "reach"
        text += f"; {verb} {names} {reach} {f.span(low, high)} times{place}"
    rest = len(groups) - 5
    return [text + (f"; {f.count(rest, 'other channel')} of the residual stream less." if rest > 0 else ".")]


def _massive(s: Summary) -> list[str]:
    """Massive activations: few tokens, few channels, enormous."""
    groups = [g for g in _of(s, "massive activation") if g.key[2] == "residual"]
    if not groups:
        return []
    g = groups[0]
    low, high = min(x.ratios[0] for x in groups), max(x.ratios[1] for x in groups)
    channels = list(dict.fromkeys(x.first.channel for x in groups if x.first.channel is not None))
    where = f.layers([n for x in groups for n in x.layers], s.model.num_layers)
    who = _token(g.first)
    carriers = f"channel{'s' if len(channels) > 1 else ''} {f.listing(map(str, channels), limit=4)}"
    return [
        f"Massive activations sit on {who} in {carriers}: up to {f.number(g.first.value)}, "
        f"{f.span(low, high)} times the median, in {where}."
    ]


def _token(x: Finding) -> str:
    """The token of a finding in words: `the first token, [CLS]`, `token .`, `position 19`."""
    name = f.token_name(x.token, x.token_id)
    place = (
        "the first token" if x.position == 0 else f"position {x.position}" if x.position is not None else None
    )
    if place and name:
        return f"{place}, {name}" if x.position == 0 else f"{place} ({name})"
    return place or (f"the token {name}" if name else "single tokens")


def _neurons(s: Summary) -> list[str]:
    """Outliers of activations that are not in the residual stream: neurons, queries, keys, values."""
    groups = [g for g in _of(s, "outlier channel", "massive activation") if g.key[2] != "residual"]
    if not groups:
        return []
    x = groups[0].first
    expert = f" of expert {x.expert}" if x.expert is not None else ""
    layer = f" of layer {x.layer}" if x.layer is not None else ""
    text = f"Inside the blocks the strongest is channel {x.channel} of {x.site}{expert}{layer}, {f.ratio(x.ratio)} times the median"
    return [text + (f" ({f.count(len(groups) - 1, 'other')} there)." if len(groups) > 1 else ".")]


def _attention(s: Summary) -> list[str]:
    if s.model.num_heads is None:
        return ["The model has no attention, so there are no sinks to look for."]
    if not s.profiles.heads:
        return ["Attention was not measured in this run."]
    sinks = _of(s, "sink position", "sink token")
    out = [_sink(sinks, s) if sinks else "No position draws attention systematically: there is no sink."]
    small = [x for x in s.findings if x.type == "small sink value"]
    if small:
        heads = f.count(len({(x.layer, x.head) for x in small}), "head")
        out.append(f"In {heads} the sink's value vector is small: attending there does nothing.")
    extreme = [x for x in s.findings if x.type == "extreme logits"]
    if extreme:
        x = extreme[0]
        heads = f.count(len({(y.layer, y.head) for y in extreme}), "head")
        out.append(
            f"{heads} {'has' if heads.startswith('1 ') else 'have'} extreme logits, up to {f.number(x.value)}"
            f"{f' in layer {x.layer}' if x.layer is not None else ''}."
        )
    learned = [h for h in s.profiles.heads if h.sink_logit_mass > 0]
    if learned:
        mean = sum(h.sink_logit_mass for h in learned) / len(learned)
        out.append(
            f"A learned sink logit takes {f.percent(mean)} of the attention in {f.count(len(learned), 'head')}."
        )
    return out


def _sink(sinks: list[Group], s: Summary) -> str:
    """How much attention goes to the most frequent sink, over the layers in which it takes at least 40 % (else 30 %)."""
    g = max(sinks, key=lambda x: len(x.findings))
    who = _token(g.first)
    strong = [p for p in s.profiles.layers if p.layer in g.layers and _mass(p, g) is not None]
    heavy = (
        [p for p in strong if (_mass(p, g) or 0) >= 0.4]
        or [p for p in strong if (_mass(p, g) or 0) >= 0.3]
        or strong
    )
    if g.first.position is None or not heavy:
        heads = f.count(g.heads, "head")
        text = f"{who[0].upper()}{who[1:]} draws attention in {heads} of {f.layers(g.layers, s.model.num_layers)}"
        text += f", up to {f.percent(g.first.value)}"
    else:
        mean = sum(_mass(p, g) or 0 for p in heavy) / len(heavy)
        text = f"{f.percent(mean)} of the attention of {f.layers([p.layer for p in heavy], s.model.num_layers)} goes to {who}"
        if g.heads:
            text += f"; {g.heads:,} of {f.count(len(s.profiles.heads), 'head')} treat{'s' if g.heads == 1 else ''} it as a sink"
    others = [x for x in sinks if x is not g]
    return text + (
        f". Other sinks: {f.listing((_token(x.first) for x in others), limit=3)}." if others else "."
    )


def _mass(p: object, g: Group) -> float | None:
    value = getattr(p, "first_token_mass" if g.first.position == 0 else "sink_mass")
    return None if value is None else float(value)


def _weights(s: Summary) -> list[str]:
    supers = [x for x in s.findings if x.type == "super weight"]
    lines = _of(s, "outlier row", "outlier column")
    out = []
    if supers:
        x = supers[0]
        at = f"{x.site}{f' of layer {x.layer}' if x.layer is not None else ''} [{x.row}, {x.column}] = {f.number(x.value)}"
        text = (
            "A single weight stands far out"
            if len(supers) == 1
            else f"{len(supers):,} single weights stand far out"
        )
        out.append(f"{text}: {at}." if len(supers) == 1 else f"{text}, first {at}.")
    if lines:
        x = lines[0].first
        name = f"{'row' if x.row is not None else 'column'} {x.row if x.row is not None else x.column} of {x.site}"
        also = (
            f" and {f.count(len(lines) - 1, 'other row or column', 'other rows or columns')}"
            if len(lines) > 1
            else ""
        )
        verb = "stands" if len(lines) == 1 else "stand"
        out.append(
            f"Among the weights {name}{also} {verb} out of {'its' if len(lines) == 1 else 'their'} matrix."
        )
    return out


def _experts(s: Summary) -> list[str]:
    places = sorted({(x.layer, x.expert) for x in s.findings if x.expert is not None}, key=str)
    total = len({(p.layer, p.expert) for p in s.profiles.sites if p.expert is not None})
    if not total:
        return []
    if not places:
        return [f"None of the {total:,} experts has outliers of its own."]
    names = f.listing((f"expert {e} of layer {n}" for n, e in places), limit=3)
    return [
        f"{len(places):,} of {f.count(total, 'expert')} {'has' if len(places) == 1 else 'have'} outliers of {'its' if len(places) == 1 else 'their'} own: {names}."
    ]


def _alignment(s: Summary) -> list[str]:
    hits = [a for a in s.profiles.alignment if a.shared and (a.p_value is None or a.p_value < 0.01)]
    if not hits:
        return []
    a = max(hits, key=lambda x: len(x.shared))
    shared = f.listing((f.visible(x) for x in a.shared), limit=4)
    chance = (
        f", where chance would give an overlap of {f.number(a.expected, digits=2)}"
        if a.expected is not None
        else ""
    )
    return [f"The kinds line up: {f.tidy(a.relation)} share {shared}{chance}."]


def _map(s: Summary) -> str:
    sites = [p for p in s.profiles.sites if p.same_as is None]
    if not sites:
        return "No activation site was measured in this run."
    worst = max(sites, key=lambda p: p.max_to_median if p.max_to_median == p.max_to_median else 0)
    hot = sum(p.max_to_median >= 40 for p in sites)
    at = worst.site if worst.layer is None else f"{worst.site} of layer {worst.layer}"
    return (
        f"The most extreme tensor is {at}: its largest value is {f.ratio(worst.max_to_median)} times its median. "
        f"{hot:,} of {f.count(len(sites), 'tensor')} {'exceeds' if hot == 1 else 'exceed'} 40 times; a Gaussian tensor of a million values would reach about 7."
    )


def _asymmetry(s: Summary) -> str:
    rows = s.profiles.asymmetry
    if not rows:
        return "No wide channel is off its centre: shifting channels would bring nothing here."
    never = sum(a.asymmetry > 1 for a in rows)
    best = max((p for p in s.profiles.sites if p.same_as is None), key=lambda p: p.shift_gain, default=None)
    a = max(rows, key=lambda x: abs(x.centre))
    crossing = "Every listed channel crosses zero"
    if never:
        crossing = f"{f.count(never, 'listed channel')} never {'crosses' if never == 1 else 'cross'} zero"
    text = (
        f"{crossing}; the furthest off centre is channel {a.channel} of "
        f"{a.site}{f' in layer {a.layer}' if a.layer is not None else ''}, which lives in [{f.number(a.min)}, {f.number(a.max)}]."
    )
    if best is not None and best.shift_gain > 1.05:
        where = best.site if best.layer is None else f"{best.site} of layer {best.layer}"
        text += f" Shifting every channel to its own centre would divide the range of {where} by {f.number(best.shift_gain, digits=2)}."
    return text


def _heads(s: Summary) -> str:
    if s.model.num_heads is None:
        return "The model has no attention."
    heads = s.profiles.heads
    if not heads:
        return "Attention was not measured in this run."
    sinks = [h for h in heads if h.sink_mass > 0.3]
    if not sinks:
        return f"None of {f.count(len(heads), 'head')} gives more than 30 % of its attention to one position."
    idle = sum(h.value_norm_ratio < 0.2 for h in sinks)
    text = f"{len(sinks):,} of {f.count(len(heads), 'head')} {'gives' if len(sinks) == 1 else 'give'} one position more than 30 % of the attention"
    where = Counter(h.sink_position for h in sinks).most_common(1)[0]
    always = "always" if where[1] == len(sinks) else f"in {where[1]:,} of them"
    text += f", {always} position {where[0]}."
    if idle:
        text += f" In {f.count(idle, 'such head')} the value vector there is below a fifth of the usual norm: the head does nothing when it looks there."
    return text


def _matrices(s: Summary) -> str:
    found = [x for x in s.findings if x.kind == "weight"]
    if not found:
        return "No row, column or single weight stands out of its matrix."
    kinds = Counter(x.type for x in found)
    names = [f.count(n, t, _PLURAL.get(t)) for t, n in kinds.items()]
    return f"{f.listing(names)} stand{'s' if len(found) == 1 else ''} out of the matrices."


def _align(s: Summary) -> str:
    rows = s.profiles.alignment
    if not rows:
        return "There were not two kinds of outliers to compare."
    hits = sum(a.p_value is not None and a.p_value < 0.01 for a in rows)
    if len(rows) == 1:
        return (
            f"The one comparison shows {'more' if hits else 'no more'} shared places than chance (p < 0.01)."
        )
    return f"{hits or 'None':} of {len(rows):,} comparisons {'show' if hits > 1 else 'shows'} more shared places than chance (p < 0.01)."


def _table(s: Summary) -> str:
    return (
        f"{f.count(len(s.findings), 'finding')}, strongest first."
        if s.findings
        else "There are no findings to list."
    )


_SECTIONS: dict[str, Callable[[Summary], str]] = {
    "map": _map,
    "asymmetry": _asymmetry,
    "attention": _heads,
    "weights": _matrices,
    "alignment": _align,
    "findings": _table,
}


def section(name: str, summary: Summary) -> str:
    """One or two sentences that open a section of the report.

    Args:
        name: `map`, `asymmetry`, `attention`, `weights`, `alignment` or `findings`.
        summary: What was found.
    """
    return _SECTIONS[name](summary)
