"""The pictures of a watched series as SVG and PNG: Vega-Lite specifications, drawn without a browser or network.

`levels` the three kinds over the steps with their onsets; `metrics` every measure as a small multiple; `channels-NAME` a heat map
channel x step of who is among the strongest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import formatting as f
from .births_words import KIND_WORDS, MEASURE_WORDS
from .figures import PALETTES
from .heat import DARK, LIGHT
from .picture_files import FORMATS, write_pictures

if TYPE_CHECKING:
    from skerry.run import Run

LINES = ("#255b84", "#b84a12", "#5a7d2a", "#7a4f9a", "#8a6d1b", "#3a8f8a", "#a23b5c", "#56666d")
_MOST_CHANNELS = 24
_NAMES = {"activation": "Activations", "attention": "Attention", "weight": "Weights"}
_CHANNEL_SITE = "resid.out"


def write_births_figures(
    run: Run, folder: str | Path, formats: Sequence[str] = FORMATS, *, dark: bool = False
) -> list[Path]:
    """Write the pictures of a watched series.

    Args:
        run: The run.
        folder: Where to; it is made.
        formats: Of `svg` and `png`.
        dark: In dark colours.

    Raises:
        UnknownOption: A format is none of these.
        BrokenRun: The run holds no watched series.
    """
    document = json.loads(run.text("births.json"))
    births = run.table("births").to_pylist()
    return write_pictures(lambda: births_figures(document, births, dark=dark), folder, formats)


def births_figures(
    document: Mapping[str, Any], births: Sequence[Mapping[str, Any]], *, dark: bool = False
) -> dict[str, str]:
    """The pictures as standalone SVG by name.

    Args:
        document: The document of the watched series.
        births: Rows of the table `births`.
        dark: In dark colours.
    """
    import vl_convert

    specs: dict[str, dict[str, Any] | None] = {
        "levels": levels_spec(document),
        "metrics": metrics_spec(document),
    }
    for number, series in enumerate(document["series"]):
        mine = [row for row in births if row["series"] == series["name"]]
        name = "channels" if len(document["series"]) == 1 else f"channels-{number}"
        specs[name] = channels_spec(series["name"], mine, dark=dark)
    dressed = {name: {**spec, **dress(dark=dark)} for name, spec in specs.items() if spec}
    return {name: str(vl_convert.vegalite_to_svg(spec)) for name, spec in dressed.items()}


def levels_spec(document: Mapping[str, Any]) -> dict[str, Any]:
    """Three panels, one for each kind: its level over the steps, and a rule where it was born."""
    return {
        "title": {"text": "Outliers being born", "subtitle": f.tidy(document["model"])},
        "hconcat": [_level_panel(document, kind) for kind in _NAMES],
        "spacing": 64,
        "bounds": "flush",
    }


def _level_panel(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    curves = [(s["name"], s["levels"][kind]) for s in document["series"]]
    values = _points(curves)
    onsets = [
        {"series": f.tidy(s["name"]), "step": o["onset"]}
        for s in document["series"]
        for o in s["onsets"]
        if o["kind"] == kind and o["onset"] is not None
    ]
    rule = {
        "data": {"values": onsets},
        "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.2},
        "encoding": {"x": {"field": "step", "type": "quantitative"}, "color": _colour(document)},
    }
    line = {
        "data": {"values": values},
        "mark": {"type": "line", "point": {"size": 18}, "strokeWidth": 1.8},
        "encoding": {
            "x": _steps(document),
            "y": _level(values, form=".0%" if kind == "attention" else ",.3~r"),
            "color": _colour(document),
        },
    }
    title = {"text": _NAMES[kind], "subtitle": KIND_WORDS[kind]}
    return {"title": title, "width": 250, "height": 190, "layer": [line, *([rule] if onsets else [])]}


def metrics_spec(document: Mapping[str, Any]) -> dict[str, Any]:
    """Every measure over the steps, four panels in a row."""
    keys = [
        key
        for key in MEASURE_WORDS
        if any((c["site"], c["measure"]) == key for s in document["series"] for c in s["curves"])
    ]
    panels = [_metric_panel(document, *key) for key in keys]
    rows = [
        {"hconcat": panels[i : i + 4], "spacing": 48, "bounds": "flush"} for i in range(0, len(panels), 4)
    ]
    title = {"text": "Every measure, largest over blocks", "subtitle": f.tidy(document["model"])}
    return {"title": title, "vconcat": rows, "spacing": 20} if rows else {}


def _metric_panel(document: Mapping[str, Any], site: str, measure: str) -> dict[str, Any]:
    curves = [
        (s["name"], c)
        for s in document["series"]
        for c in s["curves"]
        if (c["site"], c["measure"]) == (site, measure)
    ]
    values = _points(curves)
    return {
        "title": {"text": MEASURE_WORDS[site, measure], "fontSize": 10.5},
        "width": 200,
        "height": 130,
        "data": {"values": values},
        "mark": {"type": "line", "point": {"size": 10}, "strokeWidth": 1.5},
        "encoding": {"x": _steps(document), "y": _level(values), "color": _colour(document)},
    }


def channels_spec(
    name: str, births: Sequence[Mapping[str, Any]], *, dark: bool = False
) -> dict[str, Any] | None:
    """Which channels of the residual stream are among the strongest at each step, in the block where they end up the largest; None without any."""
    rows = [r for r in births if r["site"] == _CHANNEL_SITE and r["top_index"]]
    if not rows:
        return None
    last = max(r["step"] for r in rows)
    layer = max((r for r in rows if r["step"] == last), key=lambda r: r["top_size"][0] or 0.0)["layer"]
    cells = [
        {"channel": c, "step": r["step"], "size": size}
        for r in rows
        if r["layer"] == layer
        for c, size in zip(r["top_index"], r["top_size"], strict=True)
        if size is not None
    ]
    steps = sorted({r["step"] for r in rows if r["layer"] == layer})
    chosen = _longest(cells, last)
    return {
        "title": {
            "text": f"The strongest channels over time, block {layer}",
            "subtitle": f"{f.tidy(name)}: largest |x| of a channel / median over channels; empty where not among the strongest",
        },
        "data": {"values": [c for c in cells if c["channel"] in chosen]},
        "width": max(260, min(760, 22 * len(steps))),
        "height": 15 * len(chosen),
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "step",
                "type": "ordinal",
                "title": "step",
                "scale": {"domain": steps},
                "axis": {"labelOverlap": "greedy", "labelAngle": 0, "format": "~s"},
            },
            "y": {"field": "channel", "type": "ordinal", "title": "channel", "sort": chosen},
            "color": {
                "field": "size",
                "type": "quantitative",
                "title": "x median",
                "scale": {"type": "log", "range": list(DARK if dark else LIGHT)[1:]},
                "legend": {"format": ".2~r", "tickCount": 4},
            },
        },
    }


def _longest(cells: Sequence[Mapping[str, Any]], last: int) -> list[int]:
    """The channels that are strongest at the end, largest first, then those that were so for longest."""
    end = {c["channel"]: c["size"] for c in cells if c["step"] == last}
    count: dict[int, int] = {}
    for c in cells:
        count[c["channel"]] = count.get(c["channel"], 0) + 1
    return sorted(count, key=lambda c: (-end.get(c, 0.0), -count[c], c))[:_MOST_CHANNELS]


def _points(curves: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"series": f.tidy(name), "step": step, "level": level}
        for name, c in curves
        for step, level in zip(c["steps"], c["levels"], strict=True)
        if level is not None
    ]


def _steps(document: Mapping[str, Any]) -> dict[str, Any]:
    """The axis of steps: linear, or logarithmic from the first step on where checkpoints lie so."""
    steps = sorted({step for s in document["series"] for step in s["steps"]})
    positive = [s for s in steps if s > 0]
    scale: dict[str, Any] = {"type": "linear"}
    form = ",d" if steps and steps[-1] < 100_000 else "~s"
    axis: dict[str, Any] = {"format": form, "grid": False, "tickCount": 6}
    if positive and positive[-1] > 100 * positive[0] and positive[len(positive) // 2] < positive[-1] / 8:
        scale = {"type": "symlog", "constant": positive[0]}
        powers = [10**k for k in range(12) if positive[0] <= 10**k <= positive[-1]]
        axis = {**axis, "values": [*([0] if steps[0] == 0 else []), *powers]}
    return {"field": "step", "type": "quantitative", "title": "step", "scale": scale, "axis": axis}


def _level(values: Sequence[Mapping[str, Any]], *, form: str = ",.3~r") -> dict[str, Any]:
    """The axis of levels: from 0, or logarithmic where they grow more than eightfold."""
    levels = [v["level"] for v in values]
    low, high = min(levels, default=0.0), max(levels, default=0.0)
    scale: dict[str, Any] = {"type": "linear", "zero": True}
    axis: dict[str, Any] = {"format": form, "tickCount": 5}
    if low > 0 and high > 8 * low and high > 1:  # shares stay linear
        round_numbers = [m * 10.0**k for k in range(-9, 12) for m in (1, 2, 5)]
        shown = [x for x in round_numbers if low <= x <= high]
        scale = {"type": "log", "nice": False}
        axis["values"] = shown if len(shown) <= 6 else [x for x in shown if f"{x:e}"[0] == "1"]
    elif high <= 0:
        scale["domain"] = [0, 1]
    return {"field": "level", "type": "quantitative", "title": None, "scale": scale, "axis": axis}


def _colour(document: Mapping[str, Any]) -> dict[str, Any]:
    names = [f.tidy(s["name"]) for s in document["series"]]
    scale = {"domain": names, "range": [LINES[i % len(LINES)] for i in range(len(names))]}
    legend = {"orient": "bottom", "title": None} if len(names) > 1 else None
    return {"field": "series", "type": "nominal", "scale": scale, "legend": legend}


def dress(*, dark: bool) -> dict[str, Any]:
    """Colours and letters of the report."""
    p = PALETTES[dark]
    font = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"
    axis = {
        "labelColor": p["soft"],
        "titleColor": p["soft"],
        "gridColor": p["line"],
        "domainColor": p["line"],
        "tickColor": p["line"],
        "titleFontWeight": "normal",
    }
    title = {
        "color": p["ink"],
        "subtitleColor": p["soft"],
        "anchor": "start",
        "fontSize": 13,
        "subtitleFontSize": 11,
        "offset": 12,
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": p["bg"],
        "padding": 16,
        "config": {
            "font": font,
            "axis": axis,
            "title": title,
            "legend": {"labelColor": p["soft"], "titleColor": p["soft"]},
            "view": {"stroke": None},
        },
    }
