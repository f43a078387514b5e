"""A training on a terminal: what was trained, how the loss fell, what to do next; or what it would be. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from . import formatting as f

_BLOCKS = "▁▂▃▄▅▆▇█"


def train_terminal(document: Mapping[str, Any], console: Console) -> None:
    """Print a finished training.

    Args:
        document: What `skerry train --json` prints.
        console: Where to print; its width, colour and encoding are respected.
    """
    blocks = (console.encoding or "").lower().startswith("utf")
    console.print(train_view(document, blocks=blocks))


def train_view(document: Mapping[str, Any], *, blocks: bool = True) -> RenderableType:
    """The same as one rich renderable; `blocks`: whether bars of block characters may be shown."""
    recipe, facts, result = document["recipe"], document["facts"], document["result"]
    curve = document["curve"]
    rows = [
        ("decoder", size_words(recipe, facts)),
        (
            "text",
            f"{f.tidy(facts['data'])}, {f.count(result['tokens'], 'token')} in {f.count(recipe['steps'], 'step')}",
        ),
        (
            "loss",
            f"{curve[0]['loss']:.3f} to {curve[-1]['loss']:.3f} nats; held out {result['held_out']:.3f}",
        ),
    ]
    if blocks:
        rows.append(("", bars([point["loss"] for point in curve])))
    rows += [
        (
            "time",
            f"{f.seconds(result['seconds'])}, {result['tokens_per_second']:,.0f} tokens/s, {facts['precision']}, {facts['device']}",
        ),
        ("model", document["model"]),
    ]
    if result.get("privacy"):
        promise = result["privacy"]
        rows.append(("privacy", f"epsilon {promise['epsilon']:.3g} at delta {promise['delta']:.2g}"))
    if document["checkpoints"]:
        rows.append(
            ("checkpoints", f"{len(document['checkpoints'])}; `skerry watch {document['folder']}` reads them")
        )
    rows.append(("next", f"skerry audit {document['model']}"))
    return Stack(Text.assemble(("skerry train ", "bold"), f.tidy(document["folder"])), _table(rows))


def plan_terminal(plan: Mapping[str, Any], recipe: Mapping[str, Any], console: Console) -> None:
    """Print what a training would be.

    Args:
        plan: What `plan_training` found.
        recipe: As plain values.
        console: Where to print.
    """
    parts = ", ".join(f"{name} {f.short(count)}" for name, count in plan["parameters_by_part"].items())
    through = plan["times_through_text"]
    rows = [
        ("decoder", size_words(recipe, plan)),
        ("parameters", parts),
        (
            "text",
            f"{f.tidy(plan['data'])}"
            + ("" if plan["num_tokens"] is None else f", {f.count(plan['num_tokens'], 'token')} to train on"),
        ),
        (
            "reads",
            f"{f.count(plan['tokens'], 'token')} in {f.count(recipe['steps'], 'step')} of {plan['tokens_per_step']:,}"
            + ("" if through is None else f", the text {f.number(through)} times"),
        ),
        (
            "memory",
            f"{plan['bytes_of_weights_and_moments'] / 2**20:,.0f} MB for weights, gradients and moments",
        ),
        ("disk", f"{plan['bytes_on_disk'] / 2**20:,.0f} MB"),
        ("precision", f"{plan['precision']} ({plan['precision_why']})"),
        ("threads", f"{plan['threads']} ({plan['threads_why']})"),
        (
            "time",
            f"about {f.seconds(plan['seconds'])} ({f.seconds(plan['seconds_per_step'])} per step on {plan['device']}, measured now)",
        ),
    ]
    console.print(
        Stack(Text("skerry train: this would be trained; nothing was written", style="bold"), _table(rows))
    )


def size_words(recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The decoder in one line."""
    return (
        f"{recipe['attention']} attention, {f.count(recipe['layers'], 'layer')} of {recipe['width']} channels, "
        f"{f.count(recipe['heads'], 'head')}, {facts['vocab_size']:,} tokens: {f.short(facts['parameters'])} parameters"
    )


def bars(values: list[float]) -> str:
    """A curve as a row of block characters, the smallest value the lowest."""
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] for v in values)


def _table(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in rows:
        table.add_row(name, Text(words))
    return table


def choices_view(known: Mapping[str, Mapping[str, str]]) -> RenderableType:
    """Every choice of a recipe by name, with what is known of it."""
    parts: list[RenderableType] = []
    for option, choices in known.items():
        parts.append(Text(f"--{option.replace('_', '-')}", style="bold"))
        parts.append(_table([(f"  {name}", words) for name, words in choices.items()]))
    return Stack(*parts)
