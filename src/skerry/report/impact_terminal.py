"""What things cost, on a terminal: the grid of schemes, the most expensive places, clipping and pruning. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from . import formatting as f

Row = Mapping[str, Any]
MOST_SITES = 10
ORIGINAL = "original"
# What the damage is, in the words of a heading.
DAMAGE = {"loss": "Loss, nats/token", "distance": "Distance, variances"}


def impact_terminal(document: Mapping[str, Any], console: Console) -> None:
    """Print what `skerry impact --json` prints, as tables.

    Args:
        document: The document.
        console: Where to print; its width and encoding are respected.
    """
    console.print(impact_view(document))


def impact_view(document: Mapping[str, Any]) -> RenderableType:
    """The same as one rich renderable."""
    parts: list[RenderableType] = [
        Text.assemble(("skerry impact ", "bold"), f.tidy(str(document["model"]["name"]))),
        Text(),
    ]
    for name, view in (
        ("quantization_grid", grid_table),
        ("quantization_sites", sites_table),
        ("clipping", clipping_table),
        ("pruning", pruning_table),
    ):
        if rows := document.get(name):
            parts += [view(rows), Text()]
    parts += [Text(f"Note: {f.tidy(str(n))}", style="dim") for n in document["notes"]]
    parts.append(Text.assemble(("Run  ", "bold"), f.tidy(str(document["run"])), overflow="fold"))
    return Stack(*parts)


def grid_table(rows: Sequence[Row]) -> Table:
    """The whole model under every scheme."""
    causal = rows[0]["outcome"] == "loss"
    measures = ("perplexity", "kl", "top1") if causal else ("cosine", "neighbours")
    headings = {
        "kl": "KL",
        "top1": "Top-1",
        "perplexity": "Perplexity",
        "cosine": "Cosine",
        "neighbours": "Neighbours",
    }
    table = _table(
        ("Scheme", False),
        (f"{DAMAGE[rows[0]['outcome']]} [95 %]", True),
        *((headings[m], True) for m in measures),
        title="The whole model quantized",
    )
    for r in rows:
        if r["value"] is None:
            note = Text(f.tidy(str(r["note"])), style="dim", overflow="fold")
            table.add_row(
                Text(r["scheme"]), Text("not measured", style="dim"), *(Text("–") for _ in measures)
            )
            table.caption = Text.assemble(
                *(t for t in (table.caption, note, "\n") if isinstance(t, (Text, str)))
            )
            continue
        change = f.number(r["value"]) if r["scheme"] == ORIGINAL else _change(r)
        table.add_row(Text(r["scheme"]), Text(change), *(Text(_measure(m, r[m])) for m in measures))
    return table


def sites_table(rows: Sequence[Row]) -> Table:
    """The places whose quantization alone costs most."""
    ranked = sorted((r for r in rows if r["change"] is not None), key=lambda r: -r["change"])
    table = _table(
        ("Place", False),
        ("Scheme", False),
        ("Levels", True),
        ("SNR, dB", True),
        (f"{DAMAGE[rows[0]['outcome']]} [95 %]", True),
        ("Channels", True),
        ("Tokens", True),
        title="Quantized alone, the most expensive first",
        caption="Levels: share that the central 99 % of the values use. Channels, Tokens: share of the cost that is gone when these outliers "
        "(their number) stay in full precision.",
    )
    for r in ranked[:MOST_SITES]:
        table.add_row(
            Text(f"{r['layer']}.{r['site']}"),
            Text(r["scheme"]),
            Text(_percent(r["central_levels"])),
            Text(f.number(r["snr_db"])),
            Text(_change(r)),
            Text(_caused(r["share_channels"], r["num_channels"])),
            Text(_caused(r["share_tokens"], r["num_tokens"])),
        )
    return table


def clipping_table(rows: Sequence[Row]) -> Table:
    """The curve of the damage against the threshold, with the control's draws."""
    table = _table(
        ("Clipped", False),
        ("Quantile of |x|", True),
        ("Threshold", True),
        (f"{DAMAGE[rows[0]['outcome']]} [95 %]", True),
        ("Random values", True),
        title="The largest values clipped",
        caption="Random values: as many smaller ones moved as far.",
    )
    for r in rows:
        if r["control"]:
            continue
        draws = [
            c["change"]
            for c in rows
            if c["control"]
            and (c["site"], c["quantile"]) == (r["site"], r["quantile"])
            and c["change"] is not None
        ]
        null = f"{f.number(min(draws), digits=2)} to {f.number(max(draws), digits=2)}" if draws else "–"
        cells = (r["site"], f"{r['quantile']:g}", f.number(r["threshold"]), _change(r), null)
        table.add_row(*(Text(str(c)) for c in cells))
    return table


def pruning_table(rows: Sequence[Row]) -> Table:
    """The damage of every method at every sparsity."""
    damage = "loss" if any(r["outcome"] == "loss" for r in rows) else "distance"
    mine = [r for r in rows if r["outcome"] == damage]
    sparsities = sorted({r["sparsity"] for r in mine})
    table = _table(
        ("Method", False),
        *((_percent(s), True) for s in sparsities),
        title=f"Pruned ({DAMAGE[damage].lower()})",
    )
    for method in dict.fromkeys(r["method"] for r in mine):
        found = {r["sparsity"]: r["change"] for r in mine if r["method"] == method}
        table.add_row(Text(method), *(Text(_number(found.get(s))) for s in sparsities))
    return table


def _table(*columns: tuple[str, bool], title: str, caption: str | None = None) -> Table:
    """An open table; a column is its name and whether it holds numbers."""
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    return table


def _change(r: Row) -> str:
    if r["change"] is None:
        return "–"
    sign = "+" if r["change"] > 0 else ""
    if r["ci_low"] is None:
        return f"{sign}{f.number(r['change'])}"
    return f"{sign}{f.number(r['change'])} [{f.number(r['ci_low'], digits=2)}, {f.number(r['ci_high'], digits=2)}]"


def _measure(name: str, value: float | None) -> str:
    return _percent(value) if name in ("top1", "neighbours") else _number(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f.number(value)


def _percent(share: float | None) -> str:
    return "–" if share is None else f.percent(share)


def _caused(share: float | None, number: int | None) -> str:
    if number is None or not number:
        return "–"
    return f"{'–' if share is None else f.percent(share)} ({number})"
