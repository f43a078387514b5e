"""The pictures of costs and taming as files: standalone SVG by name, and before and after on one sheet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from . import charts, impact_charts, tame_charts
from . import formatting as f
from .figures import PALETTES, chart_size, standalone
from .heat import DARK, LIGHT, NUM_STEPS, ink
from .impact_data import Costs
from .lifecycle import picture
from .trace_figures import picture_style

_GAP = 28.0


def impact_figures(costs: Costs, *, dark: bool = False) -> dict[str, str]:
    """Standalone SVG files by name; a picture with nothing to show is left out."""
    drawn = {
        "costs-schemes": impact_charts.grid_chart(costs),
        "costs-sites": impact_charts.sites_chart(costs),
        **{
            f"costs-clipping-{f.tidy(site)}": impact_charts.clipping_panel(costs, site)
            for site in costs.clipped
        },
        "costs-pruning": impact_charts.pruning_chart(costs),
        "tame-before-after": before_after(costs),
    }
    style = picture_style(dark=dark) + _style(dark=dark)
    return {name: standalone(svg, dark=dark, style=style) for name, svg in drawn.items() if svg}


def before_after(costs: Costs) -> str:
    """Range per channel, range per layer and damage by bits, side by side; nothing without any of them."""
    parts = [
        tame_charts.ranges_chart(costs),
        tame_charts.strip_chart(costs),
        tame_charts.bits_chart(costs),
    ]
    return beside([p for p in parts if p], title="Before and after taming", model=costs.model)


def beside(parts: Sequence[str], *, title: str, model: str = "") -> str:
    """Charts in one row with a heading."""
    if not parts:
        return ""
    sizes = [chart_size(p) for p in parts]
    x, body = 0.0, [charts.text(0, 14, f"{title}: {f.tidy(model)}" if model else title, cls="h")]
    for part, (width, height) in zip(parts, sizes, strict=True):
        body.append(part.replace("<svg ", f'<svg x="{x:g}" y="34" width="{width:g}" height="{height:g}" ', 1))
        x += width + _GAP
    return picture(
        body, width=x - _GAP, height=34 + max(h for _, h in sizes), title=title, description="", cls="file"
    )


def _style(*, dark: bool) -> str:
    css = (files("skerry.report") / "assets" / "impact.css").read_text("utf-8").split("/*page*/")[0]
    colours = DARK if dark else LIGHT
    steps = "".join(
        f".heat{i}{{fill:{colours[i]}}}.heatink{i}{{fill:{ink(i, dark=dark)}}}" for i in range(NUM_STEPS)
    )
    return re.sub(r"var\(--(\w+)\)", lambda m: PALETTES[dark][m[1]], css.replace("svg ", "")) + steps
