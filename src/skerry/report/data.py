"""What the report's script draws from: one compact JSON of the chosen sites, heads and findings.

Only selections of tables and summary: the widest channels, the largest values, pooled strips. Experts beyond the notable ones of a part,
and sites that are the same tensor as another, are left out; the findings are all there up to `MOST_FINDINGS`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from skerry.anatomy.sites import Site
from skerry.outliers.finding import Finding, SiteProfile, Summary
from skerry.run.tables import TABLES, schema

from . import formatting as f
from .strips import Rows, rounded, split, strip

MOST_FINDINGS = 5000
_STRIP_BYTES = 450_000
_TOP, _FLAGGED, _VALUES, _EXPERTS = 8, 24, 20, 3
_PLACE = ("layer", "site", "expert")
FINDING_FIELDS = (
    "kind", "type", "site", "layer", "expert", "channel", "row", "column", "head", "position", "token", "value", "ratio", "score",
    "recurrence", "p_value", "q_value", "low", "high", "presets",
)  # fmt: skip
FACTS = (
    "abs_max", "median", "max_to_median", "kurtosis", "kurtosis_channels", "range_share_top1", "range_share_top1pct", "gini",
    "channels_for_99", "shift_gain", "asymmetric_channels", "mean_abs_skewness", "sign_consistency", "num_outlier_channels",
)  # fmt: skip

Tables = Mapping[str, pa.Table]
Place = tuple[int | None, str, int | None]


def complete(tables: Tables) -> dict[str, pa.Table]:
    """All tables of a run; one that was not measured (no attention, weights left out) is empty."""
    return {k: tables[k] if k in tables else schema(k).empty_table() for k in TABLES}


def embed(summary: Summary, tables: Tables) -> dict[str, Any]:
    """Everything the script needs, as plain JSON types."""
    flagged = _flagged(summary)
    return {
        "sites": activations(summary, tables, flagged),
        "matrices": matrices(tables, flagged),
        "heads": heads(summary),
        "findings": {
            "fields": FINDING_FIELDS,
            "rows": [finding_row(x) for x in summary.findings[:MOST_FINDINGS]],
        },
    }


def script_json(data: object) -> str:
    """JSON that is safe inside a script element: no `<`, `>` or `&`, no line separators, no NaN.

    Raises:
        ValueError: A NaN or infinity got through.
    """
    text = json.dumps(
        data, separators=(",", ":"), allow_nan=False
    )  # ASCII: separators and surrogates are escaped
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def name(place: Place) -> str:
    """The site's name, `3.resid.out` or `3.mlp.down.in[5]`."""
    return str(Site(*place))


def place_of(key: tuple[Any, ...]) -> Place:
    """The site of a key of `split`: layer, part and expert."""
    return key[0], key[1], key[2]


def _flagged(summary: Summary) -> dict[Place, set[tuple[str, int]]]:
    """Channels, rows and columns with findings, by site."""
    out: dict[Place, set[tuple[str, int]]] = defaultdict(set)
    for x in summary.findings:
        for axis, index in (("channel", x.channel), ("row", x.row), ("column", x.column)):
            if index is not None:
                out[x.layer, x.site, x.expert].add((axis, index))
    return out


def finding_row(x: Finding) -> list[object]:
    """A finding in the order of `FINDING_FIELDS`."""
    body = x.model_dump()
    body["low"], body["high"] = x.range or (None, None)
    body["token"] = f.token_name(x.token, x.token_id)
    body["presets"] = " ".join(f.visible(p) for p in x.presets)
    return [rounded(body[k], 7) if isinstance(body[k], float) else body[k] for k in FINDING_FIELDS]


def chosen(sites: tuple[SiteProfile, ...], flagged: Mapping[Place, object]) -> list[SiteProfile]:
    """Sites that the report can show: own tensors; of the experts of a part those with findings and the most extreme, three at most."""
    own = [s for s in sites if s.same_as is None]
    out = [s for s in own if s.expert is None]
    by_part: dict[tuple[int | None, str], list[SiteProfile]] = defaultdict(list)
    for s in own:
        if s.expert is not None:
            by_part[s.layer, s.site].append(s)
    for members in by_part.values():
        members.sort(key=lambda s: ((s.layer, s.site, s.expert) not in flagged, -s.max_to_median))
        out += members[:_EXPERTS]
    return sorted(out, key=lambda s: Site(s.layer, s.site, s.expert))


def activations(
    summary: Summary, tables: Tables, flagged: Mapping[Place, set[tuple[str, int]]]
) -> dict[str, object]:
    """Per site: facts, channel strip, position strip, widest channels, largest values."""
    sites = chosen(summary.profiles.sites, flagged)
    columns = int(np.clip(_STRIP_BYTES / 6 / max(1, len(sites)), 128, 512))
    channels = split(tables["channels"], _PLACE, ("channel", "min", "max", "mean", "std"))
    positions = split(tables["positions"], _PLACE, ("position", "abs_max_mean"))
    values = split(tables["values"], _PLACE, ("rank", "value", "position", "channel", "token", "token_id"))
    out: dict[str, object] = {}
    for s in sites:
        place = (s.layer, s.site, s.expert)
        body: dict[str, object] = {
            "layer": s.layer, "part": s.site, "expert": s.expert, "width": s.num_channels,
            "facts": [rounded(getattr(s, k), 6) for k in FACTS],
        }  # fmt: skip
        if (rows := channels.get(place)) is not None:
            order = np.argsort(rows["channel"], kind="stable")
            low, high = (np.nan_to_num(rows[k][order].astype(float)) for k in ("min", "max"))
            body["x"] = strip(low, high, unit=s.median, columns=columns)
            body["top"] = _widest(rows, {i for a, i in flagged.get(place, ()) if a == "channel"})
        if (rows := positions.get(place)) is not None:
            order = np.argsort(rows["position"], kind="stable")
            body["y"] = strip(None, rows["abs_max_mean"][order].astype(float), unit=s.median, columns=128)
        if (rows := values.get(place)) is not None:
            body["values"] = _values(rows)
        out[name(place)] = body
    return out


def _widest(rows: Rows, flagged: set[int]) -> list[list[object]]:
    """Widest channels and those with findings: channel, min, max, mean, std, whether it has a finding."""
    size = np.nan_to_num(np.maximum(np.abs(rows["min"].astype(float)), np.abs(rows["max"].astype(float))))
    order = np.argsort(-size, kind="stable")
    keep = list(order[:_TOP]) + [i for i in order[_TOP:] if int(rows["channel"][i]) in flagged][:_FLAGGED]
    return [
        [
            int(rows["channel"][i]),
            *(rounded(float(rows[k][i]), 5) for k in ("min", "max", "mean", "std")),
            int(int(rows["channel"][i]) in flagged),
        ]
        for i in keep
    ]


def _values(rows: Rows) -> list[list[object]]:
    """Largest values, repeated places told once: value, position, channel, token, how many inputs repeat it."""
    seen: dict[tuple[int, int, str | None], list[object]] = {}
    for i in np.argsort(rows["rank"], kind="stable"):
        token_id = rows["token_id"][i]
        token = f.token_name(
            rows["token"][i], None if token_id is None or token_id != token_id else int(token_id)
        )
        key = (int(rows["position"][i]), int(rows["channel"][i]), token)
        if key in seen:
            seen[key][4] += 1  # type: ignore[operator]
        elif len(seen) < _VALUES:
            seen[key] = [rounded(float(rows["value"][i]), 5), key[0], key[1], token, 1]
    return list(seen.values())


def matrices(tables: Tables, flagged: Mapping[Place, set[tuple[str, int]]]) -> dict[str, object]:
    """Per weight: facts, norms of columns and rows as strips, the largest lines and entries."""
    lines = split(tables["lines"], (*_PLACE, "axis"), ("index", "norm"))
    entries = split(tables["entries"], _PLACE, ("rank", "row", "column", "value"))
    facts = split(
        tables["matrices"],
        _PLACE,
        ("num_rows", "num_columns", "abs_max", "median", "std", "kurtosis", "num_nan", "num_inf"),
    )
    out: dict[str, object] = {}
    notable = [place_of(p) for p in facts if p[2] is None or p in flagged]
    for place in sorted(notable, key=lambda p: Site(*p)):
        fact = {k: v[0] for k, v in facts[place].items()}
        body: dict[str, object] = {
            "layer": place[0], "part": place[1], "expert": place[2], "shape": [int(fact["num_rows"]), int(fact["num_columns"])],
            "facts": [rounded(float(fact[k]), 4) for k in ("abs_max", "median", "std", "kurtosis", "num_nan", "num_inf")],
        }  # fmt: skip
        for axis, letter in (("column", "x"), ("row", "y")):
            rows = lines.get((*place, axis))
            if rows is None or len(rows["norm"]) < 2:
                continue
            order = np.argsort(rows["index"], kind="stable")
            norm = np.nan_to_num(rows["norm"][order].astype(float))
            body[letter] = strip(
                None, norm, unit=float(np.median(norm)), columns=192 if axis == "column" else 128
            )
            marks = {i for a, i in flagged.get(place, ()) if a == axis}
            widest = np.argsort(-norm, kind="stable")[: max(4, min(len(marks), 16))]
            body[f"{axis}s"] = [
                [
                    int(rows["index"][order][i]),
                    rounded(float(norm[i]), 5),
                    int(int(rows["index"][order][i]) in marks),
                ]
                for i in widest
            ]
        if (rows := entries.get(place)) is not None:
            body["entries"] = [
                [rounded(float(rows["value"][i]), 5), int(rows["row"][i]), int(rows["column"][i])]
                for i in np.argsort(rows["rank"], kind="stable")[:8]
            ]
        out[name(place)] = body
    return out


def heads(summary: Summary) -> list[list[object]]:
    """Per head: layer, head, position, mass, rate, uniform mass, relative entropy, largest logit, learned sink's mass, value ratio, token."""
    tokens = {
        (x.layer, x.head): f.token_name(x.token, x.token_id)
        for x in summary.findings
        if x.type in ("sink position", "sink token")
    }
    return [
        [
            h.layer, h.head, h.sink_position,
            *(rounded(x, 4) for x in (h.sink_mass, h.sink_rate, h.uniform_mass, h.relative_entropy, h.logit_max, h.sink_logit_mass, h.value_norm_ratio)),
            tokens.get((h.layer, h.head)),
        ]
        for h in summary.profiles.heads
    ]  # fmt: skip
