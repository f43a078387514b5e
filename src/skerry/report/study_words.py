"""What the faces of a study share: the columns, a cell, a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import formatting as f

COLUMNS = [
    ("loss", "loss"),
    ("max_to_median", "max/median"),
    ("kurtosis", "kurtosis"),
    ("first_share", "sink"),
    ("value_drain", "its value"),
    ("down_in_max", "down in"),
]
"""Quantity and the head of its column."""
MEANINGS = {
    "loss": "mean loss on held-out windows, nats per token",
    "max/median": "largest |x| / median |x| of the stream behind a block, worst block",
    "kurtosis": "of the stream behind a block, worst block; 3 for a Gaussian",
    "sink": "share of attention on the first token in the strongest head",
    "its value": "norm of the first token's value / the others', in that head",
    "down in": "largest |x| that a down projection reads",
}
_PER_CENT = ("first_share", "sink_rate")


def lookup(document: Mapping[str, Any], label: str, size: str, quantity: str) -> Mapping[str, Any] | None:
    """The row of a quantity; None without one."""
    at = (label, size, quantity)
    rows = document["quantities"]
    return next((r for r in rows if (r["label"], r["size"], r["quantity"]) == at), None)


def cell(row: Mapping[str, Any] | None) -> str:
    """A value."""
    if row is None or row["value"] is None:
        return "–"
    if row["quantity"] in _PER_CENT:
        return f.percent(row["value"])
    if row["quantity"] == "loss" or row["quantity"].startswith("change "):
        return _fixed(row["value"])
    return f.number(row["value"])


def versus(row: Mapping[str, Any] | None) -> str:
    """A difference or ratio with its interval: `−0.012 [−0.02, −0.004]`, `0.31 ×`."""
    if row is None:
        return "–"
    if row["versus"] is None:
        return "never" if row["quantity"] == "steps_to_baseline" else "–"
    if row["quantity"] == "parameters":
        return f"{row['versus']:+,.0f}".replace("-", "−")
    show = f.ratio if row["kind"] == "ratio" else _signed
    unit = " ×" if row["kind"] == "ratio" else ""
    told = f"{show(row['versus'])}{unit}"
    if row["versus_low"] is not None and row["versus_high"] is not None:
        told += f" [{show(row['versus_low'])}, {show(row['versus_high'])}]"
    if row["quantity"] == "steps_to_baseline" and row.get("note"):
        told += f", {row['note']}"
    return told


def _fixed(x: float) -> str:
    return f"{x:.3f}".replace("-", "−")


def _signed(x: float) -> str:
    return f"{x:+.3f}".replace("-", "−")


def compressed_names(document: Mapping[str, Any], size: str) -> list[str]:
    """Schemes and prunings of a size, in the order of the study."""
    rows = [r["quantity"] for r in document["quantities"] if r["size"] == size]
    return list(dict.fromkeys(q.removeprefix("change ") for q in rows if q.startswith("change ")))


def headline(document: Mapping[str, Any], size: str) -> list[str]:
    """In sentences: whose loss is lowest, whose outliers are smallest, what the baseline is."""
    base = document["baseline"]
    shape = document["sizes"][size]
    seeds = f.count(len(document["seeds"]), "seed")
    lines = [
        f"{size}: {f.count(shape['layers'], 'layer')} of {shape['width']:,} channels, {shape['steps']:,} steps, {seeds}."
    ]
    mine = lookup(document, base, size, "loss")
    if mine is None or mine["value"] is None:
        return lines
    peak = lookup(document, base, size, "max_to_median")
    lines.append(f"{base} has a loss of {_fixed(mine['value'])} and a max/median of {cell(peak)}.")
    others = [label for label in document["labels"] if label != base]
    for label in others:
        loss, outliers = (lookup(document, label, size, q) for q in ("loss", "max_to_median"))
        if loss is None or loss["versus"] is None:
            continue
        lines.append(f"{f.tidy(label)} {_loss_words(loss)}{_outlier_words(outliers)}.")
    return lines


def _loss_words(row: Mapping[str, Any]) -> str:
    low, high, value = row["versus_low"], row["versus_high"], row["versus"]
    if low is None or low <= 0 <= high:
        return f"has the same loss as far as this can tell ({versus(row)})"
    return f"is {'worse' if value > 0 else 'better'} by {_fixed(abs(value))} nats ({_signed(low)} to {_signed(high)})"


def _outlier_words(row: Mapping[str, Any] | None) -> str:
    if row is None or row["versus"] is None:
        return ""
    return f", with outliers {f.ratio(row['versus'])} times as large"
