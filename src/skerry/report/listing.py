"""Lists in the terminal: runs, sites, presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from skerry.anatomy.zoo_cards import ZooCard


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def runs_table(rows: Sequence[Mapping[str, Any]], folder: str) -> Table | Text:
    """Runs, newest first."""
    if not rows:
        return Text(f"no runs in {folder}; `skerry audit MODEL` makes one")
    table = _table("run", "model", "begun", "findings", "state")
    for row in rows:
        findings = "" if row["findings"] is None else str(row["findings"])
        table.add_row(row["path"], row["model"] or "", row["created"] or "", findings, row["state"])
    return table


def zoo_table(cards: Sequence[ZooCard]) -> Table:
    """Built-in models, with what their outliers are like."""
    table = _table("model", "what", "parameters", "loss", "sink share", "value", "max / median")
    for card in cards:
        m = card.measured
        name = f"{card.name} (default)" if card.is_default else card.name
        what = card.what if card.installed else f'{card.what}; not installed: pip install "skerry[demo]"'
        parameters = "" if card.num_parameters is None else f"{card.num_parameters / 1e6:.1f} M"
        share = "" if "sink_share" not in m else f"{m['sink_share']:.0%}"
        ratio = "" if "max_to_median" not in m else f"{m['max_to_median']:.0f}"
        loss, value = (f"{m[n]:.2f}" if n in m else "" for n in ("loss", "sink_value"))
        table.add_row(name, what, parameters, loss, share, value, ratio)
    return table


def presets_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Detection rules."""
    table = _table("preset", "rule", "source")
    for row in rows:
        table.add_row(row["name"], row["rule"], row["source"])
    return table


def site_rows(model: str | None, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The vocabulary, or the sites of a model with their shapes."""
    from skerry.anatomy.sites import ACTIVATION_PARTS, WEIGHT_PARTS

    vocabulary = {**ACTIVATION_PARTS, **WEIGHT_PARTS}
    if model is None:
        return {"sites": [{"site": n, "axes": p.axes, "meaning": p.meaning} for n, p in vocabulary.items()]}
    from skerry.anatomy import resolve
    from skerry.anatomy.load import load

    anatomy = resolve(load(model, trust_remote_code=trust_remote_code).model)
    rows = []
    for site in sorted([*anatomy.activation_sites, *anatomy.weight_sites]):
        same = anatomy.same_as.get(site)
        shape = list(anatomy.weight(site).shape) if site in anatomy.matrices else None
        part = vocabulary[site.part.removesuffix(".bias")]
        meaning = f"bias of that norm ({part.meaning})" if site.part.endswith(".bias") else part.meaning
        rows.append(
            {
                "site": str(site),
                "axes": part.axes,
                "shape": shape,
                "same_as": str(same) if same else None,
                "meaning": meaning,
            }
        )
    return {
        "family": anatomy.family,
        "confidence": anatomy.confidence,
        "unplaced": list(anatomy.unplaced),
        "sites": rows,
    }


def sites_table(rows: Mapping[str, Any]) -> Table:
    """Sites with their meaning."""
    if "family" not in rows:
        table = _table("site", "axes", "meaning")
        for row in rows["sites"]:
            table.add_row(row["site"], row["axes"], row["meaning"])
        return table
    table = _table("site", "shape", "meaning")
    table.title = f"family {rows['family']} ({rows['confidence']})"
    table.caption = "; ".join(rows["unplaced"]) or None
    for row in rows["sites"]:
        shape = " x ".join(str(n) for n in row["shape"]) if row["shape"] else row["axes"]
        meaning = f"the same tensor as {row['same_as']}" if row["same_as"] else row["meaning"]
        table.add_row(row["site"], shape, meaning)
    return table


def methods_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Taming methods with what they do and where they come from."""
    table = _table("method", "what it does", "source")
    for row in rows:
        table.add_row(row["name"], row["what"], row["source"])
    return table
