"""From a model to a finished run: plan, read the text once, read the weights once, look for what stands out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from skerry.outliers.find import DETECTORS_VERSION, find
from skerry.outliers.finding import ModelCard, Summary
from skerry.outliers.options import Options
from skerry.outliers.plan import Plan, facts, make_plan
from skerry.outliers.stages import read_activations, read_weights
from skerry.outliers.tabulate import token_texts
from skerry.run import Progress, Run, Silent
from skerry.run.space import check_space


def scan(
    model: str | Path | nn.Module | None = None,
    data: Any = None,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    asked: str | None = None,
    then: Callable[[Run, Plan], None] | None = None,
) -> Run:
    """Scan a model into a run directory.

    Args:
        model: Folder, hub id, `.gguf` file or a built model; None for the embedded default.
        data: Text, a path, token tensors `[sample position]` or mappings with `input_ids` and `attention_mask`; None for the
            built-in corpus.
        options: What to do; the defaults suit a first look.
        progress: Told how far it is.
        asked: Key by which a repeated request finds its answer.
        then: Further stages of the same run, with the model still loaded.

    Returns:
        The finished run; its `summary.json` holds findings and profiles.

    Raises:
        SkerryError: Whatever is wrong with model, text, options or disk; what was measured so far is kept.
    """
    options, progress = options or Options(), progress or Silent()
    progress.start("loading", 1, "model")
    plan = make_plan(model, data, options)
    progress.done()
    check_space(plan.path, expected_bytes(plan))
    with Run.begin(plan.path, plan.request, facts(plan)) as run:
        run.log(f"scan of {plan.loaded.name}: {plan.feed.card}")
        try:
            _stages(run, plan, progress, asked)
            if then is not None:
                then(run, plan)
        except BaseException as error:
            run.log(f"stopped: {type(error).__name__}: {error}")
            raise
        return run


def _stages(run: Run, plan: Plan, progress: Progress, asked: str | None) -> None:
    options, parts = plan.options, plan.options.parts()
    read_activations(
        run,
        plan.key("activations"),
        plan.anatomy,
        plan.feed,
        num_batches=len(plan.feed),
        parts=parts,
        attention=options.attention,
        text=token_texts(plan.loaded.tokenizer),
        progress=progress,
    )
    if options.weights:
        read_weights(run, plan.key("weights"), plan.anatomy, parts=parts, progress=progress)
    key = plan.key("findings", preset=options.preset, detectors=DETECTORS_VERSION)
    if run.finished("findings", key) and run.record.stages["findings"].asked == asked:
        return
    start = time.perf_counter()
    progress.start("looking for outliers", 1, "run")
    found = find(run.tables(), preset=options.preset)
    summary = Summary(
        run=str(run.path),
        model=model_card(plan),
        findings=tuple(found.findings),
        profiles=found.profiles,
        warnings=(*plan.loaded.warnings, *plan.anatomy.unplaced, *plan.feed.card.notes, *found.warnings),
        choices={name: str(choice) for name, choice in plan.choices.items()},
        seconds=_seconds(run, plan, time.perf_counter() - start),
    )
    run.finish(
        "findings",
        key,
        texts={"summary.json": summary.model_dump_json()},
        seconds=time.perf_counter() - start,
        asked=asked,
    )
    progress.done()


def _seconds(run: Run, plan: Plan, finding: float) -> dict[str, float]:
    stages = {
        name: record.seconds
        for name, record in run.record.stages.items()
        if name in ("activations", "weights")
    }
    seconds = {**plan.seconds, **stages, "findings": finding}
    return {name: round(value, 3) for name, value in seconds.items()}


def model_card(plan: Plan) -> ModelCard:
    """What was measured, in a few facts."""
    anatomy, card = plan.anatomy, plan.feed.card
    first = next(anatomy.model.parameters())
    return ModelCard(
        name=plan.loaded.name,
        architecture=type(anatomy.model).__name__,
        family=anatomy.family,
        confidence=anatomy.confidence,
        num_layers=anatomy.dims.num_layers,
        hidden_size=anatomy.dims.hidden,
        num_heads=anatomy.dims.num_heads if anatomy.attention else None,
        num_parameters=plan.loaded.num_parameters,
        dtype=str(first.dtype).removeprefix("torch."),
        device=str(first.device),
        num_samples=card.num_samples,
        num_tokens=card.num_tokens,
        tokens_per_sample=card.tokens_per_sample,
        bos=card.bos,
        corpus=card.name,
    )


def expected_bytes(plan: Plan) -> int:
    """About how much disk a run takes: 70 bytes per channel and per row or column of a matrix, and a floor for the rest."""
    widths = (
        sum(sum(plan.anatomy.weight(s).shape) for s in plan.anatomy.weight_sites)
        if plan.options.weights
        else 0
    )
    channels = 12 * plan.anatomy.dims.hidden * plan.anatomy.dims.num_layers * max(1, plan.anatomy.num_experts)
    return 70 * (widths + channels) + 8 * 2**20
