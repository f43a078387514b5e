"""The summary in a notebook cell: the paragraph and a compact table, in the notebook's own colours."""

from __future__ import annotations

from html import escape

from skerry.outliers.finding import Summary

from . import formatting as f
from .groups import group
from .words import headline, words

_STYLE = (
    ".skerry{max-width:60em;line-height:1.5}.skerry table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    ".skerry th,.skerry td{text-align:left;padding:2px 14px 2px 0;border-bottom:1px solid color-mix(in srgb,currentColor 18%,transparent)}"
    ".skerry .n{text-align:right}.skerry .s{opacity:.65}"
)


def notebook(summary: Summary, *, most: int = 8) -> str:
    """The body of `_repr_html_`: safe HTML without script.

    Args:
        summary: What was found.
        most: Rows of the table; the rest is counted.
    """
    groups = group(summary.findings)
    warnings = "".join(f"<p><strong>Warning:</strong> {escape(f.tidy(w))}</p>" for w in summary.warnings)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if i > 2 else ''}><bdi>{escape(c)}</bdi></td>" for i, c in enumerate(cells)
        )
        + "</tr>"
        for g in groups[:most]
        for cells in [
            (
                g.first.type,
                f"{g.site_text} · {g.what}",
                g.layer_text,
                _value(g.first.type, g.first.value),
                f.span(*g.ratios),
                f.percent(g.recurrence),
            )
        ]
    )
    head = "".join(
        f"<th{' class=n' if i > 2 else ''}>{h}</th>"
        for i, h in enumerate(("Outlier", "Where", "Layers", "Value", "× normal", "Recurs"))
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if groups else ""
    more = (
        f'<p class="s">{len(groups) - most:,} more; see <code>.findings</code> or <code>.report()</code></p>'
        if len(groups) > most
        else ""
    )
    return (
        f'<div class="skerry"><style>{_STYLE}</style><p><strong>{escape(f.tidy(summary.model.name))}</strong> '
        f'<span class="s">{escape(headline(summary))}</span></p>{warnings}<p>{escape(words(summary))}</p>{table}{more}</div>'
    )


def _value(kind: str, value: float) -> str:
    return f.percent(value) if kind.startswith("sink") else f.number(value)
