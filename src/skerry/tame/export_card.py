"""The model card, README.md of an export: method, data, losses before and after, errors, how to run it again, and what is not known.

Every number comes from `CardFacts` or from the read-back; what was not given is not written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from skerry.tame.readback import Readback


class Loss(NamedTuple):
    """One row of the table of losses.

    Attributes:
        model: What was measured, e.g. "original, w8a8".
        value: Mean.
        low: Lower end of its interval; None where none was computed.
        high: Upper end.
    """

    model: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """What the card says; every field but the first two may be left out.

    Attributes:
        name: Of the new model.
        base_model: Hub id, or what else the source is called; no path of this machine.
        license: Identifier of the source's licence, only where the source states it.
        language: Language codes, only where the source states them.
        methods: What was done, one sentence each, in order.
        skipped: What was left alone, with the reason, one sentence each.
        data: What calibrated it: corpus, number of tokens, sequence length, seed; word to value.
        damage: What the table of losses holds: "loss in nats per token", "distance", ...
        losses: Before and after.
        interval: How the intervals were computed.
        equivalence: What was compared with the original in float, to its relative error.
        command: The command that makes this export again.
        versions: Library to version, of the process that exported.
        limits: What a user must know, one sentence each.
    """

    name: str
    base_model: str
    license: str | None = None
    language: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    damage: str = "loss"
    losses: tuple[Loss, ...] = ()
    interval: str = ""
    equivalence: Mapping[str, float] = field(default_factory=dict)
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[str, ...] = ()


def render_card(
    facts: CardFacts, *, form: str, scheme: str | None, readback: Readback, notes: tuple[str, ...] = ()
) -> str:
    """The card as Markdown with a YAML header.

    Args:
        facts: What is known.
        form: What was written.
        scheme: Of the quantized weights and inputs; None for float.
        readback: What a fresh process found.
        notes: What the export changed or left out.
    """
    parts = [
        _header(facts, form, scheme),
        f"# {facts.name}",
        f"{facts.base_model}, tamed with skerry: its outliers were moved by changes that leave the float model's function alone."
        + (f" Weights and inputs are quantized as `{scheme}`." if scheme else ""),
        _list("## Method", facts.methods),
        _list("## Left alone", facts.skipped),
        _table("## Calibration data", ("what", "value"), [[k, v] for k, v in facts.data.items()]),
        _losses(facts),
        _equality(facts, readback),
        "" if facts.command is None else f"## Run it again\n\n```sh\n{facts.command}\n```",
        _list("## Limits", (*facts.limits, *notes)),
        _table("## Versions", ("library", "version"), [[k, v] for k, v in facts.versions.items()]),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _header(facts: CardFacts, form: str, scheme: str | None) -> str:
    # A JSON string is a YAML string, whatever is in it.
    lines = [
        f"base_model: {json.dumps(facts.base_model)}",
        f"library_name: {'transformers' if form in ('float', 'compressed-tensors') else json.dumps(form)}",
    ]
    if facts.license:
        lines.append(f"license: {json.dumps(facts.license)}")
    if facts.language:
        lines.append(f"language: {json.dumps(list(facts.language))}")
    tags = ["skerry", "outliers", *([form, scheme] if scheme else [])]
    lines.append(f"tags: {json.dumps(tags)}")
    return "\n".join(["---", *lines, "---"])


def _list(title: str, lines: tuple[str, ...]) -> str:
    return title + "\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _table(title: str, head: tuple[str, ...], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    cells = [list(head), ["---"] * len(head), *rows]
    return (
        title
        + "\n\n"
        + "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells)
    )


def _losses(facts: CardFacts) -> str:
    rows = [
        [
            loss.model,
            f"{loss.value:.4f}",
            "" if loss.low is None or loss.high is None else f"{loss.low:.4f} to {loss.high:.4f}",
        ]
        for loss in facts.losses
    ]
    table = _table("## Losses", ("model", facts.damage, "interval"), rows)
    return f"{table}\n\n{facts.interval}" if table and facts.interval else table


def _equality(facts: CardFacts, readback: Readback) -> str:
    rows = [[name, f"{error:.2g}"] for name, error in facts.equivalence.items()]
    rows.append(
        [
            f"this export, read back by a fresh process ({readback.loaded_as}, {readback.num_positions} positions)",
            f"{readback.max_relative_error:.2g} ({readback.bound:.2g} allowed)",
        ]
    )
    read = ", ".join(f"{name} {version}" for name, version in readback.versions.items())
    table = _table("## Equality", ("compared", "relative error"), rows)
    return f"{table}\n\nThe relative error is max |a - b| / max |b| over all outputs. Read back with {read}."
