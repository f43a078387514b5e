"""The pictures of a study as SVG and PNG: Vega-Lite specifications, drawn without a browser or network.

`curve` held-out loss over steps; `outliers` how they grow meanwhile; `trade` loss against outliers; `compressed` what rounding and pruning
cost; `layers` outliers by block. One of each for every size.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import formatting as f
from .births_figures import LINES, dress
from .picture_files import FORMATS, write_pictures
from .study_words import compressed_names, lookup

Spec = dict[str, Any]
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
"""Beyond eight labels colours come again, with another dash."""
_OUTLIERS = (
    ("max_to_median", "largest / median of the stream", True),
    ("first_share", "strongest head's share on the first token", False),
)


def write_study_figures(
    document: Mapping[str, Any], folder: str | Path, formats: Sequence[str] = FORMATS, *, dark: bool = False
) -> list[Path]:
    """Write the pictures of a study.

    Args:
        document: Of the study.
        folder: Where to; it is made.
        formats: Of `svg` and `png`.
        dark: In dark colours.

    Raises:
        UnknownOption: A format is none of these.
    """
    return write_pictures(lambda: study_figures(document, dark=dark), folder, formats)


def study_figures(document: Mapping[str, Any], *, dark: bool = False) -> dict[str, str]:
    """The pictures as standalone SVG by name, `SIZE-KIND`; one with nothing to show is left out.

    Args:
        document: Of the study.
        dark: In dark colours.
    """
    import vl_convert

    kinds = {
        "curve": curve_spec,
        "outliers": outliers_spec,
        "trade": trade_spec,
        "compressed": compressed_spec,
        "layers": layers_spec,
    }
    found = {}
    for size in document["sizes"]:
        for kind, make in kinds.items():
            if spec := make(document, size):
                found[f"{size}-{kind}"] = str(vl_convert.vegalite_to_svg({**spec, **dress(dark=dark)}))
    return found


def curve_spec(document: Mapping[str, Any], size: str) -> Spec | None:
    """Held-out loss over steps, mean over seeds with the span of the seeds; a rule at the baseline's final loss."""
    values = _over_steps(document, size, "loss")
    if not values:
        return None
    base = [v for v in values if v["label"] == f.tidy(document["baseline"])]
    # The first steps fall so far that nothing after them could be told apart.
    last = max(v["step"] for v in values)
    shown = [v for v in values if v["step"] >= 0.15 * last] or values
    low, high = min(v["low"] for v in shown), max(v["high"] for v in shown)
    room = (high - low) * 0.05 or 0.1
    y: Spec = {"title": "held-out loss, nats per token", **_linear((low - room, high + room))}
    layers = [*_lines(document, shown, y), *_band(document, shown)]
    if base:
        level = max(base, key=lambda v: v["step"])["value"]
        rule = {"type": "rule", "strokeDash": [3, 3], "strokeWidth": 1, "color": "#7c8a90"}
        layers.append(
            {
                "data": {"values": [{"value": level}]},
                "mark": rule,
                "encoding": {"y": {"field": "value", "type": "quantitative"}},
            }
        )
    sub = f"dashed: the final loss of {f.tidy(document['baseline'])}; the first steps are in the table"
    return {
        "title": {"text": "Held-out loss over training", "subtitle": sub},
        "width": 520,
        "height": 300,
        "layer": layers,
    }


def outliers_spec(document: Mapping[str, Any], size: str) -> Spec | None:
    """How outliers grow over the steps: stream and sink, side by side."""
    panels: list[Spec] = []
    for name, words, logarithmic in _OUTLIERS:
        values = _over_steps(document, size, name)
        if values:
            ends = [v[k] for v in values for k in ("low", "high")]
            y: Spec = _log_axis(ends) if logarithmic else _linear((0.0, 1.08 * max(ends)), form=".0%")
            panels.append(
                {
                    "title": {"text": words, "fontSize": 11},
                    "width": 300,
                    "height": 220,
                    "layer": [*_lines(document, values, y), *_band(document, values)],
                }
            )
    title = {
        "text": "Outliers while they grow",
        "subtitle": "on 8 held-out windows; mean over seeds, with their span",
    }
    return {"title": title, "hconcat": panels, "spacing": 48, "bounds": "flush"} if panels else None


def trade_spec(document: Mapping[str, Any], size: str) -> Spec | None:
    """Loss against the outliers of the stream: the lower left is where one wants to be."""
    values = []
    for label in document["labels"]:
        loss, peak = (lookup(document, label, size, q) for q in ("loss", "max_to_median"))
        if loss is None or peak is None or loss["value"] is None or peak["value"] is None:
            continue
        values.append({"label": f.tidy(label), "loss": loss["value"], "peak": peak["value"]})
    if not values:
        return None
    x = {
        "field": "peak",
        "type": "quantitative",
        "title": "largest / median of the stream, worst block",
        **_log_axis([v["peak"] for v in values]),
    }
    y = {
        "field": "loss",
        "type": "quantitative",
        "title": "held-out loss, nats per token",
        "scale": {"zero": False, "padding": 20},
        "axis": {"format": ".3f", "tickCount": 6},
    }
    both = {"x": x, "y": y}
    dots = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
        "encoding": {**both, "color": _colour(document, legend=False)},
    }
    names = {
        "mark": {"type": "text", "align": "left", "dx": 8, "dy": -5, "fontSize": 11, "clip": False},
        "encoding": {**both, "text": {"field": "label"}, "color": _colour(document, legend=False)},
    }
    return {
        "title": {"text": "Loss against outliers", "subtitle": "mean over seeds; left is without outliers, down is better"},
        "data": {"values": values},
        "width": 520,
        "height": 300,
        "layer": [dots, names],
    }  # fmt: skip


def compressed_spec(document: Mapping[str, Any], size: str) -> Spec | None:
    """Rise of the loss under every scheme and pruning, a panel for each with an axis of its own."""
    panels: list[Spec] = []
    for name in compressed_names(document, size):
        values = [
            {"label": f.tidy(label), "value": row["value"], "low": row["ci_low"], "high": row["ci_high"]}
            for label in document["labels"]
            if (row := lookup(document, label, size, f"change {name}")) is not None
            and row["value"] is not None
        ]
        if values:
            panels.append(_bars(document, name, values, first=len(panels) % 3 == 0))
    rows = [{"hconcat": panels[i : i + 3], "spacing": 28} for i in range(0, len(panels), 3)]
    title = {
        "text": "Rise of the loss when compressed",
        "subtitle": "nats per token, rounding to nearest; whiskers: 95 % intervals; every panel has its own axis",
    }
    return {"title": title, "vconcat": rows, "spacing": 24} if rows else None


def _bars(document: Mapping[str, Any], name: str, values: Sequence[Spec], *, first: bool) -> Spec:
    order = [f.tidy(x) for x in document["labels"]]
    axis = {
        "title": None,
        "labelLimit": 150,
        "grid": False,
        **({} if first else {"labels": False, "ticks": False}),
    }
    y = {"field": "label", "type": "nominal", "sort": order, "axis": axis}
    x = {
        "type": "quantitative",
        "title": None,
        "scale": {"zero": True},
        "axis": {"tickCount": 4, "format": "~g"},
    }
    bar = {
        "mark": {"type": "bar", "height": {"band": 0.62}},
        "encoding": {"y": y, "x": {**x, "field": "value"}, "color": _colour(document, legend=False)},
    }
    whisker = {
        "mark": {"type": "rule", "strokeWidth": 1.4, "color": "#7c8a90"},
        "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
    }
    known = all(v["low"] is not None for v in values)
    return {
        "title": {"text": name, "fontSize": 11},
        "data": {"values": list(values)},
        "width": 170,
        "height": 20 * len(order) + 8,
        "layer": [bar, *([whisker] if known else [])],
    }


def layers_spec(document: Mapping[str, Any], size: str) -> Spec | None:
    """Outliers of the stream by block, geometric mean over seeds."""
    rows = [r for r in document["layers"] if r["size"] == size and r.get("max_to_median")]
    values = []
    for label, layer in dict.fromkeys((r["label"], r["layer"]) for r in rows):
        mine = [r["max_to_median"] for r in rows if (r["label"], r["layer"]) == (label, layer)]
        values.append({"label": f.tidy(label), "layer": layer, "value": statistics.geometric_mean(mine)})
    if len({v["layer"] for v in values}) < 2:
        return None
    x = {"field": "layer", "type": "ordinal", "title": "behind block", "axis": {"labelAngle": 0}}
    y = {
        "field": "value",
        "type": "quantitative",
        "title": "largest / median of the stream",
        **_log_axis([v["value"] for v in values]),
    }
    mark = {"type": "line", "point": {"size": 30}, "strokeWidth": 1.8}
    return {
        "title": {"text": "Outliers by block"},
        "data": {"values": values},
        "width": 520,
        "height": 220,
        "mark": mark,
        "encoding": {"x": x, "y": y, "color": _colour(document), **_dash(document)},
    }


def _over_steps(document: Mapping[str, Any], size: str, name: str) -> list[Spec]:
    """Mean and span over seeds by label and step."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in document["curve"]:
        if row["size"] == size and row.get(name) is not None:
            found.setdefault((row["label"], row["step"]), []).append(row[name])
    return [
        {"label": f.tidy(label), "step": step, "value": statistics.fmean(x), "low": min(x), "high": max(x)}
        for (label, step), x in found.items()
    ]


def _lines(document: Mapping[str, Any], values: Sequence[Spec], y: Spec) -> list[Spec]:
    encoding = {
        "x": _steps(),
        "y": {"title": None, **y, "field": "value", "type": "quantitative"},
        "color": _colour(document),
        **_dash(document),
    }
    mark = {"type": "line", "point": {"size": 16}, "strokeWidth": 1.8}
    return [{"data": {"values": list(values)}, "mark": mark, "encoding": encoding}]


def _band(document: Mapping[str, Any], values: Sequence[Spec]) -> list[Spec]:
    if all(v["low"] == v["high"] for v in values):
        return []
    encoding = {
        "x": _steps(),
        "y": {"field": "low", "type": "quantitative"},
        "y2": {"field": "high"},
        "color": _colour(document),
    }
    return [
        {
            "data": {"values": list(values)},
            "mark": {"type": "area", "opacity": 0.15},
            "encoding": encoding,
        }
    ]


def _steps() -> Spec:
    axis = {"format": ",d", "grid": False, "tickCount": 6}
    return {"field": "step", "type": "quantitative", "title": "step", "axis": axis, "scale": {"nice": False}}


def _log_axis(values: Sequence[float]) -> Spec:
    """A logarithmic scale a little wider than the values, with ticks at 1, 2 and 5."""
    low, high = min(values) / 1.15, max(values) * 1.15
    ticks = [m * 10.0**k for k in range(-9, 12) for m in (1, 2, 5)]
    shown = [t for t in ticks if low <= t <= high]
    if len(shown) < 3:  # less than a doubling
        shown = [
            m * 10.0**k
            for k in range(-9, 12)
            for m in (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
            if low <= m * 10.0**k <= high
        ]
    return {
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {"format": ",.3~r", "values": shown},
    }


def _linear(domain: tuple[float, float], *, form: str = ",.3~r") -> Spec:
    """A linear scale."""
    return {"scale": {"domain": list(domain), "nice": False}, "axis": {"format": form, "tickCount": 6}}


def _colour(document: Mapping[str, Any], *, legend: bool = True) -> Spec:
    names = [f.tidy(x) for x in document["labels"]]
    scale = {"domain": names, "range": [LINES[i % len(LINES)] for i in range(len(names))]}
    shown = {"orient": "bottom", "title": None, "columns": 4} if legend and len(names) > 1 else None
    return {"field": "label", "type": "nominal", "scale": scale, "legend": shown}


def _dash(document: Mapping[str, Any]) -> Spec:
    """Only where colours come again."""
    names = [f.tidy(x) for x in document["labels"]]
    if len(names) <= len(LINES):
        return {}
    dashes = [_DASHES[i // len(LINES) % len(_DASHES)] for i in range(len(names))]
    return {
        "strokeDash": {
            "field": "label",
            "type": "nominal",
            "scale": {"domain": names, "range": dashes},
            "legend": None,
        }
    }
