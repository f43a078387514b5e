"""The pictures of a trace as files: the lifecycle diagram of each birth and the layer plot, as SVG and PNG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from . import charts, layerplot, lifecycle
from . import formatting as f
from .figures import PALETTES, chart_size, standalone
from .lifecycle_cards import story
from .picture_files import FORMATS, write_pictures
from .trace_data import Trace, from_run

if TYPE_CHECKING:
    from skerry.run import Run

MOST = 4


def write_figures(
    run: Run | Trace, folder: str | Path, formats: Sequence[str] = FORMATS, *, dark: bool = False
) -> list[Path]:
    """Write `lifecycle-CHANNEL` for the outliers of every birth and `layers` for all; nothing without outliers.

    Args:
        run: A run that holds a trace, or the trace.
        folder: Where to; it is made.
        formats: Of `svg` and `png`.
        dark: In dark colours.

    Raises:
        UnknownOption: A format is none of these.
    """
    trace = run if isinstance(run, Trace) else from_run(run)
    return write_pictures(lambda: trace_figures(trace, dark=dark), folder, formats)


def trace_figures(trace: Trace, *, dark: bool = False) -> dict[str, str]:
    """The pictures as standalone SVG by name."""
    drawn: dict[str, str] = {}
    for number in trace.families()[:MOST]:
        name = f"lifecycle-{trace.carrier(number)['channel']}"
        while name in drawn:  # one channel may be two outliers
            name += "b"
        drawn[name] = titled(lifecycle.diagram(trace, number), story(trace, number).title, trace.model)
    if sheet := layerplot.sheet(trace):
        drawn["layers"] = titled(sheet, "Birth, plateau and end by block", trace.model)
    style = picture_style(dark=dark)
    return {k: standalone(v, dark=dark, style=style) for k, v in drawn.items()}


def titled(svg: str, title: str, model: str) -> str:
    """A picture with its title above, for a file that stands alone."""
    width, height = chart_size(svg)
    inner = svg.replace("<svg ", f'<svg x="0" y="34" width="{width:g}" height="{height:g}" ', 1)
    words = f"{title} in {f.tidy(model)}" if model else title
    heading = charts.text(0, 14, lifecycle.wrap(words, width / 9)[0], cls="h")
    return lifecycle.picture(
        [heading, inner], width=width, height=height + 34, title=words, description="", cls="file"
    )


def picture_style(*, dark: bool = False) -> str:
    """The report's style of these marks, with the colours written out."""
    css = (files("skerry.report") / "assets" / "trace.css").read_text("utf-8").split("/*page*/")[0]
    palette = PALETTES[dark]
    return re.sub(r"var\(--(\w+)\)", lambda m: palette[m[1]], css.replace("svg ", ""))
