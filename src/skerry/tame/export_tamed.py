"""A tamed model into an export: which form, what the card says, what cannot be held."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.corpus.batch import Batch
from skerry.errors import NotPossible
from skerry.run import Progress, Run
from skerry.tame.export import CardFacts, Export, Exported, Loss, export
from skerry.tame.pipeline import Tamed, grids_of
from skerry.tame.register import METHODS
from skerry.tame.wanted import TameOptions

if TYPE_CHECKING:
    from skerry.outliers.plan import Plan
    from skerry.tame.choose import Choice


def export_tamed(
    plan: Plan,
    run: Run,
    wanted: TameOptions,
    choice: Choice,
    calibration: Sequence[Batch],
    progress: Progress,
) -> Exported:
    """Write what was chosen; see `skerry.tame.export`.

    Raises:
        SkerryError: As `export` says.
    """
    tamed = choice.tamed
    quantized = wanted.form in ("auto", "compressed-tensors")
    weights = grids_of(tamed)
    if quantized and (loose := sorted(set(tamed.found.weights) - set(weights))):
        raise NotPossible(
            f"{tamed.name} gave weights without their grids ({loose[0]}, ...), so they cannot be stored as integers; use --form float"
        )
    assert wanted.out is not None
    return export(
        Export(
            model=tamed.anatomy.model,
            tokenizer=plan.loaded.tokenizer,
            card=card_facts(plan, run, wanted, choice, calibration),
            scheme=wanted.scheme if quantized else None,
            weights=weights if quantized else {},
            input_grids=tamed.found.grids if quantized else {},
            config_changes=tamed.config_changes,
            becomes=tamed.becomes,
            needs=tamed.needs,
        ),
        Path(wanted.out),
        form=wanted.form,
        progress=progress,
    )


def card_facts(
    plan: Plan, run: Run, wanted: TameOptions, choice: Choice, calibration: Sequence[Batch]
) -> CardFacts:
    """What the model card says, from what was measured."""
    tamed, card = choice.tamed, plan.feed.card
    name = Path(str(wanted.out)).name
    return CardFacts(
        name=name,
        base_model=plan.loaded.name,
        methods=tuple(
            f"`{m}`: {METHODS[m].what} ({METHODS[m].source})" for m in tamed.name.split(",") if m in METHODS
        ),
        skipped=tuple(dict.fromkeys(tamed.found.notes)),
        data={
            "corpus": card.name,
            "calibration inputs": str(sum(len(b.input_ids) for b in calibration)),
            "calibration tokens": str(sum(b.num_tokens for b in calibration)),
            "held-out inputs": str(wanted.samples if wanted.evaluate else 0),
            "longest input": f"{card.tokens_per_sample} tokens",
            "seed": str(plan.options.seed),
            "text": "" if card.text_sha256 is None else f"SHA-256 {card.text_sha256}",
        },
        damage=_damage(choice),
        losses=tuple(_losses(choice)),
        interval="Intervals: 95 % percentile bootstrap over held-out inputs, of the change against the original on the same inputs.",
        equivalence={
            f"{method}, outputs in {e.dtype} after folding": e.stored
            for method, e in tamed.equivalence.items()
            if e.stored is not None
        }
        | {
            f"{method}, outputs in float64 before folding": e.float64
            for method, e in tamed.equivalence.items()
            if e.float64 is not None
        },
        command=command(plan, wanted),
        versions={**_versions(), "python": platform.python_version()},
        limits=tuple(_limits(tamed, wanted)),
    )


def _damage(choice: Choice) -> str:
    outcome = str(choice.rows[0]["outcome"]) if choice.rows else "loss"
    return (
        "loss (nats per token)"
        if outcome == "loss"
        else "distance of the last hidden states from the original's (variances)"
    )


def _losses(choice: Choice) -> list[Loss]:
    found = []
    for row in choice.rows:
        if row.get("value") is None:
            continue
        base = float(row["value"]) - float(row["change"] or 0.0)
        low, high = row.get("ci_low"), row.get("ci_high")
        what = "original" if row["method"] == "none" else str(row["method"])
        scheme = "full precision" if row["scheme"] == "float" else str(row["scheme"])
        found.append(
            Loss(
                f"{what}, {scheme}",
                float(row["value"]),
                None if low is None else base + float(low),
                None if high is None else base + float(high),
            )
        )
    return found


def _limits(tamed: Tamed, wanted: TameOptions) -> list[str]:
    limits = [
        "Losses were measured on a simulation of the integer arithmetic in floating point, on held-out inputs of the same text as the calibration."
    ]
    if not wanted.evaluate:
        limits = ["Nothing was measured on held-out text."]
    if tamed.becomes:
        limits.append(
            f"The checkpoint names the class of `{tamed.becomes}`, whose parameters have the same names, because the own class has no place for a bias."
        )
    return limits


def _versions() -> dict[str, str]:
    import torch
    import transformers

    import skerry

    return {
        "skerry": skerry.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def command(plan: Plan, wanted: TameOptions) -> str:
    """The command that does the same again; the model and the text under the names that the user gave."""
    options: dict[str, Any] = {
        "method": wanted.method,
        "bits": str(wanted.scheme),
        "out": Path(str(wanted.out)).name if wanted.out else None,
        "form": wanted.form if wanted.form != "auto" else None,
        "calibration": wanted.calibration,
        "samples": wanted.samples,
        "seed": plan.options.seed,
        "tokens": plan.feed.card.tokens_per_sample,
    }
    words = ["skerry", "tame", plan.loaded.name]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    for method, settings in wanted.settings.items():
        for name, value in settings.items():
            words += ["--set", f"{method}.{name}={value}"]
    return shlex.join(words)
