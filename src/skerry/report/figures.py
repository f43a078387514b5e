"""The report's charts as files: SVG text by name, and PNG from any of them. No browser, no network.

`map` layer x site; `channels` ranges of the channels of the most extreme site; `depth` size of the stream by layer; `asymmetry`; `sinks`
layer x head; `overview` the first ones on one sheet.
"""

from __future__ import annotations

import re
from html import escape

import numpy as np
import pyarrow.compute as pc

from skerry.outliers.finding import Summary

from . import charts, heat
from . import formatting as f
from .data import Place, Tables, complete, name
from .page import Heat, cloud, sink_grid, site_map

_MARGIN = 14
_LIGHT = {
    "bg": "#fbfbf9",
    "ink": "#17242b",
    "soft": "#56666d",
    "line": "#dfe4e2",
    "blue": "#255b84",
    "accent": "#b84a12",
    "bar": "#9fb4bc",
    "card": "#ffffff",
    "shade": "#f1f4f2",
}
_DARK = {
    "bg": "#11171a",
    "ink": "#e3e9e6",
    "soft": "#98a7aa",
    "line": "#2b363b",
    "blue": "#76b7c9",
    "accent": "#f2965a",
    "bar": "#54666e",
    "card": "#161d21",
    "shade": "#151c1f",
}
PALETTES = {False: _LIGHT, True: _DARK}  # by `dark`
_STYLE = """text{{font:11px "Liberation Sans",Arial,Helvetica,"DejaVu Sans",sans-serif;fill:{soft}}}.n,.r{{fill:{ink}}}.n{{paint-order:stroke;stroke:{bg};stroke-width:3px}}.f{{fill:{accent};font-weight:bold}}
.h{{fill:{ink};font-size:15px;font-weight:bold}}.g{{stroke:{line}}}.d{{stroke:{soft};stroke-dasharray:5 4}}.s{{fill:none;stroke-width:1.8}}
.s.a{{stroke:{accent}}}.s.b{{stroke:{blue}}}.s.c{{stroke:{soft}}}.m.a{{fill:{accent}}}.m.b{{fill:{blue}}}.m.c{{fill:{soft}}}.k{{fill:{bar};opacity:.7}}
.bars{{stroke:{bar};fill:none}}.bars.x{{stroke:{accent}}}"""


def figures(summary: Summary, tables: Tables, *, dark: bool = False) -> dict[str, str]:
    """Standalone SVG files by name; a figure with nothing to show is left out."""
    place, tables = extreme(summary), complete(tables)
    parts = {
        "map": heat_chart(site_map(summary, {}), title="Largest value / median by site and layer", dark=dark),
        "channels": channels(summary, tables, place) if place else "",
        "depth": charts.depth(summary.profiles.layers),
        "asymmetry": charts.asymmetry(summary.profiles.asymmetry, cloud(summary, tables)),
        "sinks": heat_chart(
            sink_grid(summary),
            title="% of attention on the most attended position, layer by head",
            cell=26,
            dark=dark,
        ),
    }
    drawn = {k: v for k, v in parts.items() if v}
    if drawn:
        drawn["overview"] = overview(summary, drawn)
    return {k: standalone(v, dark=dark) for k, v in drawn.items()}


def png(svg: str, *, scale: float | int = 2) -> bytes:
    """An SVG of `figures` as PNG bytes, `scale` pixels for a unit."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=scale))


def standalone(svg: str, *, dark: bool = False, style: str = "") -> str:
    """The chart with its own colours and a background, for a file outside the report; `style`: rules for further marks."""
    palette = PALETTES[dark]
    width, height = chart_size(svg)
    box = f'x="{-_MARGIN}" y="{-_MARGIN}" width="{width + 2 * _MARGIN:g}" height="{height + 2 * _MARGIN:g}"'
    head = f'<style>{_STYLE.format(**palette)}{style}</style><rect {box} fill="{palette["bg"]}"/>'
    start = svg.index(">") + 1
    size = f'width="{width + 2 * _MARGIN:g}" height="{height + 2 * _MARGIN:g}" viewBox="{-_MARGIN} {-_MARGIN} {width + 2 * _MARGIN:g} {height + 2 * _MARGIN:g}"'
    return re.sub(r'viewBox="[^"]*"', size, svg[:start], count=1) + head + svg[start:]


def chart_size(svg: str) -> tuple[float, float]:
    """Width and height of a chart.

    Raises:
        ValueError: It has no view box.
    """
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if found is None:
        raise ValueError("the chart has no view box")
    return float(found[1]), float(found[2])


def extreme(summary: Summary) -> Place | None:
    """The site of the strongest activation finding, else the one of largest max / median."""
    for x in summary.findings:
        if x.kind == "activation":
            return x.layer, x.site, x.expert
    best = max(
        (s for s in summary.profiles.sites if s.same_as is None), key=lambda s: s.max_to_median, default=None
    )
    return None if best is None else (best.layer, best.site, best.expert)


def heat_chart(grid: Heat, *, title: str, cell: float | int = 34, dark: bool = False) -> str:
    """A heat map as a chart; numbers in the cells where they fit."""
    if not grid.rows:
        return ""
    cell = 15.0 if grid.dense else cell
    left, top, tall = 84, 38, 22 if not grid.dense else 15
    colours = heat.DARK if dark else heat.LIGHT
    body = [charts.text(0, 12, title, cls="t r")]
    jump = 4 if grid.dense else 1
    body += [
        charts.text(left + (i + 0.5) * cell, top - 6, c, anchor="middle")
        for i, c in enumerate(grid.columns)
        if i % jump == 0
    ]
    for y, (row, _, cells) in enumerate(grid.rows):
        body.append(charts.text(left - 7, top + (y + 0.68) * tall, row, cls="t r", anchor="end"))
        for x, c in enumerate(cells):
            if c is None:
                continue
            at = left + x * cell, top + y * tall
            body.append(
                f'<rect x="{at[0] + 0.75:g}" y="{at[1] + 0.75:g}" width="{cell - 1.5:g}" height="{tall - 1.5:g}" rx="2" fill="{colours[c.step]}"/>'
            )
            if not grid.dense:
                fill = f' style="fill:{heat.ink(c.step, dark=dark)}"'
                body.append(
                    charts.text(at[0] + cell / 2, at[1] + tall * 0.68, c.text, anchor="middle", extra=fill)
                )
    width = max(left + cell * len(grid.columns) + 4, 380)
    return charts.svg(body, width=width, height=top + tall * len(grid.rows) + 4, title=title, description="")


def channels(summary: Summary, tables: Tables, place: Place) -> str:
    """Smallest to largest value of every channel of a site, the ones with findings named."""
    rows = tables["channels"]
    for key, value in zip(("layer", "site", "expert"), place, strict=True):
        rows = rows.filter(pc.is_null(rows[key]) if value is None else pc.equal(rows[key], value))
    if rows.num_rows == 0:
        return ""
    index, low, high = (np.nan_to_num(rows[c].to_numpy().astype(float)) for c in ("channel", "min", "max"))
    flagged = {
        x.channel for x in summary.findings if x.channel is not None and (x.layer, x.site, x.expert) == place
    }
    width, height, left, top, bottom = 820, 270, 52, 34, 40
    bottom_value, top_value = min(0.0, float(low.min())), max(0.0, float(high.max()))
    room = (top_value - bottom_value) * 0.09 or 1
    a, b = bottom_value - room, top_value + room
    y = lambda v: top + (b - v) / (b - a) * (height - top - bottom)  # noqa: E731
    x = lambda i: left + (i + 0.5) / (index.max() + 1) * (width - left - 8)  # noqa: E731
    body = [charts.text(0, 12, f"Range of every channel of {name(place)}", cls="t r")]
    for t in ticks(a, b, 6):
        body += [
            charts.line(left, y(t), width - 8, y(t), "g"),
            charts.text(left - 6, y(t) + 4, f.short_value(float(t)), anchor="end"),
        ]
    for cls, keep in (("bars", ~np.isin(index, list(flagged))), ("bars x", np.isin(index, list(flagged)))):
        path = "".join(
            f"M{x(i):.1f},{y(h):.1f}V{y(lo) + 0.6:.1f}"
            for i, lo, h in zip(index[keep], low[keep], high[keep], strict=True)
        )
        body.append(
            f'<path class="{cls}" stroke-width="{max(0.6, (width - left) / len(index) * 0.85):.2f}" d="{path}"/>'
        )
    for i, lo, h in zip(index, low, high, strict=True):
        if int(i) in flagged:
            at = y(h) - 5 if abs(h) >= abs(lo) else y(lo) + 13
            body.append(charts.text(x(i), at, f"{int(i)}", cls="t f", anchor="middle"))
    body += [
        charts.text(x(i), height - bottom + 16, f"{int(i):,}", anchor="middle")
        for i in ticks(0, float(index.max()), 9)
    ]
    body.append(charts.text((left + width) / 2, height - bottom + 32, "channel", anchor="middle"))
    return charts.svg(
        body,
        width=width,
        height=height,
        title=f"Range of every channel of {name(place)}",
        description=f"Named: {f.listing(map(str, sorted(flagged))) or 'none'}.",
    )


def ticks(low: float | int, high: float | int, most: int) -> list[float]:
    """At most `most` + 1 round numbers in [low, high]."""
    step = 10.0 ** np.floor(np.log10(max(high - low, 1e-30) / most))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= most)
    return [float(t) for t in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def overview(summary: Summary, drawn: dict[str, str]) -> str:
    """Channels above, map and sinks below, on one sheet: the picture for a page about the model."""
    title = f"{f.tidy(summary.model.name)}: {f.count(len(summary.findings), 'finding')}"
    body, y = [charts.text(24, 34, title, cls="h")], 54.0
    sheet = 868.0
    for row in (("channels",), ("map", "sinks")):
        placed = [k for k in row if k in drawn]
        if not placed:
            continue
        sizes = [chart_size(drawn[k]) for k in placed]
        shrink = min(1.0, (sheet - 48 - 24 * (len(placed) - 1)) / sum(w for w, _ in sizes))
        x = 24.0
        for k, (w, h) in zip(placed, sizes, strict=True):
            body.append(
                drawn[k].replace(
                    "<svg ",
                    f'<svg x="{x:g}" y="{y:g}" width="{w * shrink:.1f}" height="{h * shrink:.1f}" ',
                    1,
                )
            )
            x += w * shrink + 24
        y += max(h for _, h in sizes) * shrink + 22
    return charts.svg(
        body,
        width=sheet,
        height=y,
        title=escape(title),
        description="Channels of the most extreme site, all sites by layer, attention sinks by head.",
    )
