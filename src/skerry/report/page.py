"""The report's page as plain data for its template: heat maps, tables and figures, already worded and rounded."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from skerry.anatomy.sites import ACTIVATION_PARTS, WEIGHT_PARTS, Site
from skerry.outliers.finding import ChannelAsymmetry, Finding, Summary

from . import charts, data, heat
from . import formatting as f
from .groups import RESIDUAL_WIDTH, Group, group
from .strips import split
from .words import headline, section, type_counts, words

_BEFORE = ("w.embed", "w.position", "w.type", "norm.embed")


class Cell(NamedTuple):
    """One cell of a heat map."""

    text: str
    step: int
    target: str = ""
    mark: str = ""


class Heat(NamedTuple):
    """A heat map as a table: column names, and rows of a name, its meaning and cells (None where there is nothing)."""

    columns: list[str]
    rows: list[tuple[str, str, list[Cell | None]]]
    dense: bool


def context(summary: Summary, tables: data.Tables, record: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows."""
    m, embedded = summary.model, data.embed(summary, tables)
    return {
        "title": f.tidy(m.name), "headline": headline(summary), "paragraph": words(summary), "warnings": [f.tidy(w) for w in summary.warnings],
        "tiles": tiles(summary), "groups": [group_row(g) for g in group(summary.findings)[:12]], "num_groups": len(group(summary.findings)),
        "section": {k: section(k, summary) for k in ("map", "asymmetry", "attention", "weights", "alignment", "findings")},
        "map": site_map(summary, embedded["sites"]), "weights": weight_map(embedded["matrices"]), "sinks": sink_grid(summary),
        "first": first_site(summary, embedded["sites"]), "first_matrix": first_matrix(summary, embedded["matrices"]),
        "nonfinite": nonfinite(tables),
        "marks": marks,
        "hard": hard_sites(summary), "depth": charts.depth(summary.profiles.layers),
        "asymmetry": charts.asymmetry(summary.profiles.asymmetry, cloud(summary, tables)), "offcentre": [asymmetry_row(a) for a in summary.profiles.asymmetry],
        "offcentre_first": [asymmetry_row(a) for a in one_per_channel(summary.profiles.asymmetry)[:12]],
        "keys": key_table(tables), "alignment": [alignment_row(a) for a in summary.profiles.alignment],
        "findings": [finding_row(x) for x in summary.findings[:40]], "num_findings": len(summary.findings), "types": type_counts(summary),
        "kinds": sorted({x.kind for x in summary.findings}), "presets": sorted({f.visible(p) for x in summary.findings for p in x.presets}),
        "layers": sorted({x.layer for x in summary.findings if x.layer is not None}), "most": data.MOST_FINDINGS,
        "has_attention": m.num_heads is not None and bool(summary.profiles.heads), "has_weights": bool(embedded["matrices"]),
        "method": method(summary), "record": flatten(record), "command": command(summary, record), "run": f.tidy(summary.run),
        "choices": [(f.tidy(k), f.tidy(v)) for k, v in summary.choices.items()], "seconds": [(f.tidy(k), f.seconds(v)) for k, v in summary.seconds.items()],
        "total": f.seconds(sum(summary.seconds.values())), "ratio_steps": [f.short(x) for x in heat.RATIO_STEPS], "json": data.script_json(embedded),
        "share_steps": [f"{100 * x:.0f}" for x in heat.SHARE_STEPS],
        "parts": {k: p.meaning for k, p in {**ACTIVATION_PARTS, **WEIGHT_PARTS}.items()},
    }  # fmt: skip


def tiles(s: Summary) -> list[tuple[str, str, str]]:
    """The key figures: value, what it is, where."""
    out = [
        (
            f"{len(s.findings):,}",
            "findings",
            f"{f.count(len(group(s.findings)), 'outlier')} over layers and sites",
        )
    ]
    own = [p for p in s.profiles.sites if p.same_as is None and math.isfinite(p.max_to_median)]
    if own:
        worst = max(own, key=lambda p: p.max_to_median)
        out.append(
            (
                f"{f.ratio(worst.max_to_median)} ×",
                "largest value / median",
                data.name((worst.layer, worst.site, worst.expert)),
            )
        )
        share = max(own, key=lambda p: p.range_share_top1)
        where = data.name((share.layer, share.site, share.expert))
        out.append((f.percent(share.range_share_top1), "of a tensor's range belongs to one channel", where))
    masses = [p for p in s.profiles.layers if p.sink_mass is not None]
    if masses:
        top = max(masses, key=lambda p: p.sink_mass or 0)
        out.append(
            (
                f.percent(top.sink_mass),
                "of the attention on one position",
                f"mean over heads, layer {top.layer}",
            )
        )
    if own:
        gain = max(own, key=lambda p: p.shift_gain)
        where = data.name((gain.layer, gain.site, gain.expert))
        out.append(
            (f"{f.number(gain.shift_gain, digits=2)} ×", "smaller range if channels were centred", where)
        )
    return out


def group_row(g: Group) -> dict[str, str]:
    """One line of the short table."""
    x = g.first
    value = f.percent(x.value) if x.type.startswith("sink") else f.number(x.value)
    return {
        "type": x.type, "kind": x.kind, "place": g.what, "sites": ", ".join(g.sites[:4]) + (f" +{len(g.sites) - 4}" if len(g.sites) > 4 else ""),
        "layers": g.layer_text, "heads": f"{g.heads:,}" if g.heads else "–", "value": value, "ratio": f.span(*g.ratios), "recurrence": f.percent(g.recurrence),
    }  # fmt: skip


def _columns(layers: Iterable[int | None], parts: Iterable[tuple[int | None, str]]) -> list[int | str]:
    outside = [part for layer, part in parts if layer is None]
    numbers = sorted({n for n in layers if n is not None})
    before = ["in"] if any(p.startswith(_BEFORE) for p in outside) else []
    return [*before, *numbers, *(["out"] if any(not p.startswith(_BEFORE) for p in outside) else [])]


def _column(layer: int | None, part: str) -> int | str:
    return layer if layer is not None else "in" if part.startswith(_BEFORE) else "out"


def _heat(cells: dict[tuple[str, int | str], Cell], columns: list[int | str]) -> Heat:
    parts = sorted({p for p, _ in cells}, key=lambda p: Site(0, p))
    meanings = {k: p.meaning for k, p in {**ACTIVATION_PARTS, **WEIGHT_PARTS}.items()}
    rows = [(p, meanings.get(p, ""), [cells.get((p, c)) for c in columns]) for p in parts]
    return Heat([str(c) for c in columns], rows, len(columns) > 14)


def site_map(s: Summary, embedded: Mapping[str, object]) -> Heat:
    """Layer x site: max / median; experts of a site share a cell that shows the largest."""
    best: dict[tuple[str, int | str], Any] = {}
    for p in s.profiles.sites:
        at = p.site, _column(p.layer, p.site)
        if at not in best or p.max_to_median > best[at].max_to_median:
            best[at] = p
    cells = {}
    for at, p in best.items():
        target = p.same_as or data.name((p.layer, p.site, p.expert))
        mark = "same" if p.same_as else "expert" if p.expert is not None else ""
        cells[at] = Cell(
            f.short(p.max_to_median),
            heat.ratio_step(p.max_to_median),
            target if target in embedded else "",
            mark,
        )
    return _heat(
        cells, _columns((p.layer for p in s.profiles.sites), ((p.layer, p.site) for p in s.profiles.sites))
    )


def weight_map(matrices: Mapping[str, Any]) -> Heat:
    """Layer x weight: largest |w| / median |w|; experts share a cell."""
    cells: dict[tuple[str, int | str], Cell] = {}
    sizes: dict[tuple[str, int | str], float] = {}
    for target, body in matrices.items():
        top, median = body["facts"][0], body["facts"][1]
        if not isinstance(top, int | float) or not isinstance(median, int | float) or median <= 0:
            continue
        at = body["part"], _column(body["layer"], body["part"])
        if top / median > sizes.get(at, -1):
            sizes[at] = top / median
            bad = bool(body["facts"][4] or body["facts"][5])
            cells[at] = Cell(
                f.short(top / median), heat.ratio_step(top / median), target, "bad" if bad else ""
            )
    places = [(b["layer"], b["part"]) for b in matrices.values()]
    return _heat(cells, _columns((p[0] for p in places), places))


def marks(grid: Heat, meanings: Mapping[str, str]) -> str:
    """What the marks of a map mean, for its legend; only those that it has."""
    used = {c.mark for _, _, cells in grid.rows for c in cells if c is not None}
    return "".join(f"; {text}" for mark, text in meanings.items() if mark in used)


def sink_grid(s: Summary) -> Heat:
    """Layer x head: share of attention that the head's most attended position receives."""
    heads: dict[int, dict[int, Cell]] = defaultdict(dict)
    for i, h in enumerate(s.profiles.heads):
        mark = "nop" if h.sink_mass > 0.3 and h.value_norm_ratio < 0.2 else ""
        heads[h.layer][h.head] = Cell(f"{100 * h.sink_mass:.0f}", heat.share_step(h.sink_mass), str(i), mark)
    columns = sorted({h.head for h in s.profiles.heads})
    rows = [(str(layer), "", [cells.get(c) for c in columns]) for layer, cells in sorted(heads.items())]
    return Heat([str(c) for c in columns], rows, len(columns) > 16)


def first_site(s: Summary, embedded: Mapping[str, Any]) -> str:
    """The site that the page opens with: that of the strongest activation finding, else the most extreme one."""
    for x in s.findings:
        if x.kind == "activation" and (at := data.name((x.layer, x.site, x.expert))) in embedded:
            return at
    return max(embedded, key=lambda k: _known(embedded[k]["facts"][2]), default="")


def first_matrix(s: Summary, embedded: Mapping[str, Any]) -> str:
    """The weight that the page opens with."""
    for x in s.findings:
        if x.kind == "weight" and (at := data.name((x.layer, x.site, x.expert))) in embedded:
            return at
    return max(
        embedded,
        key=lambda k: (
            embedded[k]["shape"][0] > 1,
            _known(embedded[k]["facts"][0]) / (abs(_known(embedded[k]["facts"][1])) or 1),
        ),
        default="",
    )


def _known(x: object) -> float:
    return float(x) if isinstance(x, int | float) else -1.0


def hard_sites(s: Summary) -> list[list[str]]:
    """The tensors that quantize worst, by max / median."""
    own = [p for p in s.profiles.sites if p.same_as is None]
    return [
        [
            data.name((p.layer, p.site, p.expert)), f.number(p.abs_max), f.number(p.median), f.ratio(p.max_to_median), f.number(p.kurtosis),
            f.number(p.kurtosis_channels), f.percent(p.range_share_top1), f.percent(p.range_share_top1pct), f.number(p.gini, digits=2),
            f"{p.channels_for_99:,} of {p.num_channels:,}", f"{f.number(p.shift_gain)} ×", f"{p.asymmetric_channels:,}",
        ]
        for p in sorted(own, key=lambda p: -p.max_to_median if p.max_to_median == p.max_to_median else 0)[:10]
    ]  # fmt: skip


def cloud(s: Summary, tables: data.Tables, *, most: int = 500) -> list[tuple[float, float]]:
    """Half width and |centre| of ordinary channels from the sites of the off-centre ones, evenly picked."""
    places = {(a.layer, a.site, a.expert) for a in s.profiles.asymmetry}
    if not places:
        return []
    rows = split(tables["channels"], ("layer", "site", "expert"), ("min", "max"))
    mine = [rows[p] for p in sorted(places, key=lambda p: Site(*p)) if p in rows]
    if not mine:
        return []
    low, high = (np.concatenate([m[k].astype(float) for m in mine]) for k in ("min", "max"))
    pick = np.linspace(0, len(low) - 1, min(most, len(low))).astype(int)
    half, centre = (high - low)[pick] / 2, np.abs(high + low)[pick] / 2
    good = np.isfinite(half + centre)
    return [(float(a), float(b)) for a, b in zip(half[good], centre[good], strict=True)]


def one_per_channel(rows: Sequence[ChannelAsymmetry]) -> list[ChannelAsymmetry]:
    """Of the rows of a channel in the residual stream (or of one part) the first, so that a short list shows different channels."""
    seen: dict[tuple[object, ...], ChannelAsymmetry] = {}
    for a in rows:
        space = "residual" if a.site in RESIDUAL_WIDTH else (a.layer, a.site, a.expert)
        seen.setdefault((space, a.channel), a)
    return list(seen.values())


def asymmetry_row(a: ChannelAsymmetry) -> list[str]:
    """One line of the asymmetry table."""
    return [
        data.name((a.layer, a.site, a.expert)), str(a.channel), f"{f.number(a.min)} … {f.number(a.max)}", f.number(a.centre), f.number(a.half_width), f.ratio(a.asymmetry),
    ]  # fmt: skip


def key_table(tables: data.Tables) -> dict[str, Any] | None:
    """Share of a layer's attention by key position (single positions, then doubling bins), and the token that receives most."""
    keys = tables["keys"]
    if keys.num_rows == 0:
        return None
    by_layer = {k[0]: v for k, v in split(keys, ("layer",), ("position", "received")).items()}
    length = 1 + max(int(v["position"].max()) for v in by_layer.values())
    edges = [0, 1, 2, 3, 4]
    while edges[-1] < length:
        edges.append(edges[-1] * 2)
    edges = [e for e in edges if e < length] + [length]
    bins = [str(a) if b == a + 1 else f"{a}–{b - 1}" for a, b in pairwise(edges)]
    # Weights of all heads add up; a token's are means over heads.
    heads = len(set(keys.column("head").to_pylist())) or 1
    totals = {layer: float(np.nansum(v["received"])) / heads for layer, v in by_layer.items()}
    tokens = _top_tokens(tables, totals)
    rows = []
    for layer, v in sorted(by_layer.items(), key=lambda kv: int(kv[0])):  # type: ignore[call-overload]
        sums = np.histogram(
            v["position"], bins=[*edges[:-1], length], weights=np.nan_to_num(v["received"].astype(float))
        )[0]
        share = sums / (sums.sum() or 1)
        rows.append(
            (
                str(layer),
                [Cell(f.percent(float(x)).removesuffix(" %"), heat.share_step(float(x))) for x in share],
                tokens.get(layer, ("–", "")),
            )
        )
    return {"bins": bins, "rows": rows}


def nonfinite(tables: data.Tables, *, most: int = 12) -> dict[str, Any] | None:
    """Where NaN and infinite values were: the first places, and how many are listed in the run."""
    table = tables["nonfinite"]
    if table.num_rows == 0:
        return None
    rows = [
        [
            data.name((r["layer"], r["site"], r["expert"])),
            r["kind"] or "–",
            *(f.number(r[k], digits=9) for k in ("sample", "position", "channel")),
        ]
        for r in table.slice(0, most).to_pylist()
    ]
    return {"rows": rows, "total": table.num_rows}


def _top_tokens(tables: data.Tables, totals: Mapping[object, float]) -> dict[object, tuple[str, str]]:
    out = {}
    for (layer,), v in split(tables["key_tokens"], ("layer",), ("token_id", "token", "received")).items():
        i = int(np.argmax(v["received"]))
        share = float(v["received"][i]) / (totals.get(layer) or math.inf)
        out[layer] = (f.token_name(v["token"][i], int(v["token_id"][i])) or "–", f.percent(min(1.0, share)))
    return out


def alignment_row(a: Any) -> dict[str, Any]:
    """One line of the alignment table."""
    show = lambda places: f.listing((f.visible(p) for p in places), limit=10) or "none"  # noqa: E731
    return {
        "relation": f.tidy(a.relation), "left": show(a.left), "right": show(a.right), "shared": show(a.shared), "overlap": f.number(a.overlap, digits=2),
        "expected": f.number(a.expected, digits=2), "p": f.p_value(a.p_value),
    }  # fmt: skip


def finding_row(x: Finding) -> list[str]:
    """One line of the findings table, the columns of the script's."""
    where = "–" if x.layer is None else str(x.layer)
    site = x.site if x.expert is None else f"{x.site}[{x.expert}]"
    coordinates = [(k, getattr(x, k)) for k in ("channel", "row", "column", "head", "position")]
    place = ", ".join(f"{k} {v}" for k, v in coordinates if v is not None)
    range_ = f"{f.number(x.range[0])} … {f.number(x.range[1])}" if x.range else "–"
    return [
        x.type, where, site, place or "–", f.token_name(x.token, x.token_id) or "–", f.number(x.value), f.ratio(x.ratio), range_, f.percent(x.recurrence), f.p_value(x.q_value),
        " ".join(f.visible(p) for p in x.presets),
    ]  # fmt: skip


def method(s: Summary) -> list[tuple[str, str]]:
    """How it was measured, as terms and facts."""
    m = s.model
    heads = f"{m.num_heads} heads" if m.num_heads is not None else "no attention"
    rows = [
        ("Model", m.name), ("Architecture", f"{m.architecture} (family {m.family}; sites {m.confidence})"),
        ("Size", f"{f.count(m.num_layers, 'layer')}, {m.hidden_size:,} channels, {heads}, {m.num_parameters:,} parameters"),
        ("Forward", f"{m.dtype} on {m.device}"), ("Text", m.corpus),
        ("Read", f"{f.count(m.num_samples, 'independent input')} of {f.count(m.tokens_per_sample, 'token')}, {f.count(m.num_tokens, 'token')} in all"),
        ("First token", m.bos),
    ]  # fmt: skip
    return [(k, f.tidy(v)) for k, v in rows]


def command(s: Summary, record: Mapping[str, Any]) -> str:
    """The command that makes this run again: as recorded, else from what the summary knows."""
    told = record.get("command")
    if isinstance(told, str):
        return f.tidy(told)
    if isinstance(told, Sequence):
        return f.tidy(shlex.join(map(str, told)))
    m = s.model
    return f.tidy(
        f"skerry audit {shlex.quote(m.name)} --samples {m.num_samples} --tokens {m.tokens_per_sample} --dtype {m.dtype} --device {m.device}"
    )


def flatten(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A run's record as lines of dotted names and values, the command left out."""
    out: list[tuple[str, str]] = []
    for k, v in record.items():
        if isinstance(v, Mapping):
            out += flatten(v, f"{prefix}{k}.")
        elif f"{prefix}{k}" != "command" and v is not None:
            out.append(
                (
                    f.tidy(f"{prefix}{k}"),
                    f.tidy(", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v)),
                )
            )
    return out
