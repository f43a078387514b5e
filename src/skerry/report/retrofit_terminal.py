"""A retrofit on a terminal: proof, stages side by side, bounds, what was taken out, where the folder is. Fits 80 columns."""

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
_NOTES = 6


def retrofit_terminal(document: Mapping[str, Any], console: Console) -> None:
    """Print what a retrofit did.

    Args:
        document: Of `skerry retrofit`.
        console: Where to print.
    """
    console.print(retrofit_view(document))


def retrofit_view(document: Mapping[str, Any]) -> RenderableType:
    """The same as one rich renderable."""
    token = document["token_text"] or document["token"]
    parts: list[RenderableType] = [
        Text.assemble(("skerry retrofit ", "bold"), f.tidy(str(document["model"]))),
        Text(
            f"{f.tidy(str(token))}, with which every input begins, is folded into attention; the new model does not read it."
        ),
        _proof(document["proof"]),
        Text(),
        stages_table(document["stages"]),
    ]
    if document["bounds"]:
        parts += [bounds_table(document["bounds"]), Text()]
    parts += [
        Text(
            f"Taken out: channel {r['channel']}, born in the down projection of block {r['layer']}, {r['ratio']:.0f} x the median at "
            f"{f.count(r['num_tokens'], 'token')}"
        )
        for r in document["carriers"]
    ]
    distillation = document["distillation"]
    learned = distillation["kl"]
    if learned and distillation["is_kept"]:
        parts.append(
            Text(
                f"Distilled: {f.count(distillation['steps'], 'step')}, divergence {learned[0]['kl']:.4f} at first, "
                f"{learned[-1]['kl']:.4f} at last"
            )
        )
    parts += [Text(f"Note: {f.tidy(n)}", style="dim") for n in document["notes"][:_NOTES]]
    if document["out"] is not None:
        parts.append(Text.assemble(("Written ", "bold"), f.tidy(document["out"]["path"]), overflow="fold"))
    return Stack(*parts)


def _proof(proof: Row) -> Text:
    exact = "" if proof["float64"] is None else f"relative error {proof['float64']:.0e} in float64, "
    return Text.assemble(("same function  ", "green"), f"{exact}{proof['stored']:.0e} as stored")


def stages_table(rows: Sequence[Row]) -> Table:
    """Loss, outliers and quantized loss of every stage."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    schemes = list(rows[0]["schemes"])
    heads = ["Stage", "Loss", "Max/med", "Sink", "|v|", *schemes]
    for i, name in enumerate(heads):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for i, row in enumerate(rows):
        loss = f"{row['loss']:.4f}" if i == 0 else f"{row['change']:+.4f}"
        cells = [row["stage"], loss, f"{row['max_to_median']:.0f}"]
        cells += ["–" if row.get(k) is None else f"{row[k]:.2f}" for k in ("sink_share", "value_ratio")]
        cells += [_change(row["schemes"][s]["change"]) for s in schemes]
        table.add_row(*(Text(c) for c in cells))
    table.caption = (
        "Loss in nats per token, then its change from the original, also where a scheme stands. Sink: largest mean attention to the "
        "first token that is read; |v|: length of its value by the others'."
    )
    return table


def _change(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def bounds_table(rows: Sequence[Row]) -> Table:
    """How far the cheaper forms can be from the exact fold, over layers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    heads = ("Untrained form", "Measured", "Bound", "Bound from logits")
    for i, name in enumerate(heads):
        table.add_column(name, justify="right" if i else "left")
    for form in dict.fromkeys(r["form"] for r in rows):
        mine = [r for r in rows if r["form"] == form]
        cells = [form]
        for key in ("measured", "bound", "bound_from_logits"):
            known = [r[key] for r in mine if r[key] is not None]
            cells.append(f"{max(known):.2f}" if known else "–")
        table.add_row(*(Text(c) for c in cells))
    table.caption = "Error of a layer's attention as a share of its output, inputs exact: worst layer."
    return table
