"""What are attention sinks for? Three hypotheses, each tested by keeping only what it says matters.

The output of a head is (1 - p) times the mean of the values of ordinary tokens, plus what the sinks bring, b; `roles_parts` has the
identity and the five arms, `roles_verdict` the rules, `roles_measures` the supporting numbers. Arms run on three levels: a head, all
heads with sinks of a layer, all of the model. In the last, p, r and b are those of the forward that is being changed, so a layer reacts
to what was changed before it; means are always those of the untouched model.

Control (of all arms but `neither`): the same changes given to other tokens of the batch (never sinks or padding), each change to exactly one token, none to its own:
equal energy. A change that is the same at all tokens (dropping a truly fixed bias) equals its control, which is what the control tells.

A head has a sink when its queries give sinks a tenth of their attention on average. Everything is per input, then averaged over inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.bootstrap import Interval, bootstrap
from skerry.causes.outcome import Judge
from skerry.causes.roles_measures import head_sums, measure_rows, output_gram
from skerry.causes.roles_parts import ARMS, Means
from skerry.causes.roles_runs import (
    IDENTITY_ERROR,
    RUNS,
    Arms,
    Costs,
    Profile,
    Target,
    choose_inputs,
    profile,
)
from skerry.causes.roles_verdict import SHARES, decide
from skerry.causes.sinks import Sinks
from skerry.corpus.batch import Batch
from skerry.run.progress import Progress, Silent

# A head has a sink when sinks get so much of its attention.
SINK_MASS = 0.1
# Heads changed one by one: those with the most attention on sinks. Fewer, where the operations for them are more than about ten minutes
# of one core; never fewer than six.
MIN_HEADS, MAX_HEADS = 6, 24
HEAD_OPERATIONS = 5e13
Rows = list[dict[str, Any]]


def measure_roles(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    sinks: Sinks,
    judge: Judge,
    *,
    inputs: int | None = None,
    max_heads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The roles of the sinks of a model.

    Args:
        anatomy: The model with its places.
        batches: Inputs in random order.
        sinks: Which keys are sinks.
        judge: Says how much a change hurts; its kl, or distance without a head, decides.
        inputs: Inputs used, the first ones; 32 by default, 12 when they are longer than 128 tokens.
        max_heads: Heads changed one by one; 24 by default, fewer in large models. Layers and the whole model always are changed.
        seed: Of controls and resampling.
        progress: Told how far it is.

    Returns:
        Rows of the tables `roles`, `role_verdicts` and `role_measures`, and under `notes` what the reader must know.
    """
    progress = progress or Silent()
    tables: dict[str, Any] = {"roles": [], "role_verdicts": [], "role_measures": [], "notes": []}
    chosen, profiles = _readable(anatomy, batches, sinks, inputs, tables["notes"])
    heads = {
        layer: found
        for layer, p in profiles.items()
        if (found := [h for h, mass in enumerate(p.mass.tolist()) if mass >= SINK_MASS])
    }
    if not heads:
        if profiles:
            tables["notes"].append(
                f"no head gives sinks a mean of {SINK_MASS:g} of its attention, so no role was tested"
            )
        return tables
    if max_heads is None:
        max_heads = affordable_heads(anatomy, judge, sum(b.num_tokens for b in chosen))
    targets = _targets(heads, profiles, max_heads, tables["notes"])
    costs = [Costs() for _ in targets]
    sums: dict[tuple[int, int], list[Tensor]] = {(layer, h): [] for layer in heads for h in heads[layer]}
    grams = {layer: output_gram(anatomy, layer, len(profiles[layer].mass)) for layer in heads}
    means: dict[int, Means] = {layer: profiles[layer].means for layer in heads}
    progress.start("roles of sinks", len(chosen) * len(targets) * len(RUNS), "run")
    for number, batch in enumerate(chosen):
        arms = Arms(anatomy, batch, sinks, means, judge, seed=seed + number)
        for (layer, head), found_sums in sums.items():
            found_sums.append(head_sums(arms.terms[layer], means[layer], grams[layer], head))
        for target, cost in zip(targets, costs, strict=True):
            for _ in arms.measure(target, cost):
                progress.advance()
    progress.done()
    for (layer, head), found_sums in sums.items():
        tables["role_measures"] += measure_rows(layer, head, found_sums, seed=seed)
    for target, cost in zip(targets, costs, strict=True):
        tables["roles"] += _role_rows(target, cost, judge, seed=seed)
        verdict, measures = _verdict_rows(target, cost, judge, seed=seed)
        tables["role_verdicts"].append(verdict)
        tables["role_measures"] += measures
    tables["notes"] += [judge.note] if judge.note else []
    return tables


def affordable_heads(anatomy: Anatomy, judge: Judge, num_tokens: int) -> int:
    """Heads that can be changed one by one; a run costs half a forward on average, as blocks before the head are not computed."""
    read = sum(p.numel() for p in anatomy.model.parameters() if p.dim() > 1)
    embedding = cast(Any, anatomy.model).get_input_embeddings() if judge.vocab is None else None
    looked_up = sum(p.numel() for p in embedding.parameters()) if embedding is not None else 0
    operations = len(RUNS) * 0.5 * 2 * (read - looked_up) * num_tokens
    return int(min(MAX_HEADS, max(MIN_HEADS, HEAD_OPERATIONS // max(1.0, operations))))


def _readable(
    anatomy: Anatomy, batches: Sequence[Batch], sinks: Sinks, inputs: int | None, notes: list[str]
) -> tuple[list[Batch], dict[int, Profile]]:
    """The inputs, and the layers whose sinks can be taken apart; notes say what cannot."""
    if not anatomy.attention:
        notes.append("the model has no attention, so no sinks")
        return [], {}
    if not sinks.layers:
        notes.append("no head gives a sink much attention: no sinks were found, so no role was tested")
        return [], {}
    layers = [x for x in sinks.layers if x in anatomy.attention and Site(x, "attn.mix") in anatomy.taps]
    if missing := [str(x) for x in sinks.layers if x not in layers]:
        notes.append(
            f"the heads of blocks {', '.join(missing)} cannot be changed before the output projection"
        )
    chosen, short = choose_inputs(batches, inputs, anatomy)
    if short:
        notes.append(f"{short} inputs of a single token were left out: nothing attends to a sink there")
    if not chosen or not layers:
        return [], {}
    profiles, more = profile(anatomy, chosen, sinks, layers)
    notes += more
    for layer, found in list(profiles.items()):
        if not found.error < IDENTITY_ERROR:
            notes.append(
                f"block {layer}: what the output projection reads is not the sum of attention times values "
                f"(off by {found.error:.2g} of the largest), so the role of its sinks was not tested"
            )
            del profiles[layer]
    return chosen, profiles


def _targets(
    heads: Mapping[int, Sequence[int]], profiles: Mapping[int, Profile], max_heads: int, notes: list[str]
) -> list[Target]:
    """The model, its layers, and the heads with the most attention on sinks."""
    ranked = sorted(
        ((layer, h) for layer, found in heads.items() for h in found),
        key=lambda place: -float(profiles[place[0]].mass[place[1]]),
    )
    if len(ranked) > max_heads:
        notes.append(
            f"{len(ranked)} heads have a sink; the {max_heads} with the most attention on it were changed one by one, the others "
            "only with their layer and the model"
        )
    return [
        Target("model", heads),
        *(Target("layer", {layer: found}) for layer, found in heads.items()),
        *(Target("head", {layer: [h]}) for layer, h in sorted(ranked[:max_heads])),
    ]


def _place(target: Target) -> dict[str, Any]:
    return {"level": target.level, "layer": target.layer, "head": target.head}


def _role_rows(target: Target, cost: Costs, judge: Judge, *, seed: int) -> Rows:
    rows = []
    for arm in ARMS:
        for outcome in judge.outcomes:
            change = cost.of(arm, outcome)
            against = change - cost.of("both frozen", outcome)
            rows.append(
                {
                    **_place(target),
                    "arm": arm,
                    "outcome": outcome,
                    **_ends("change", "low", "high", bootstrap(change, seed=seed)),
                    **_named("against_both", bootstrap(against, seed=seed)),
                    **_named("control", bootstrap(cost.of(arm, outcome, control=True), seed=seed)),
                    "num_samples": int(np.isfinite(change).sum()),
                }
            )
    return rows


def _verdict_rows(target: Target, cost: Costs, judge: Judge, *, seed: int) -> tuple[dict[str, Any], Rows]:
    outcome = "kl" if "kl" in judge.outcomes else judge.outcomes[0]
    found = decide({arm: cost.of(arm, outcome) for arm in ARMS}, seed=seed)
    row = {
        **_place(target),
        "verdict": found.verdict,
        "outcome": outcome,
        **_ends("strength", "low", "high", found.strength),
        "why": found.why + _against_controls(cost, outcome),
    }
    place = {"layer": target.layer, "head": target.head}
    num_samples = int(np.isfinite(cost.of("neither", outcome)).sum())
    measures = [
        {
            **place,
            "measure": f"role share of {name}",
            **_ends("value", "low", "high", found.shares[name]),
            "num_samples": num_samples,
        }
        for name in SHARES
        if np.isfinite(found.shares[name].value)
    ]
    return row, measures


def _against_controls(cost: Costs, outcome: str) -> str:
    """How far the damage is that of these tokens, and not of a change of this size anywhere."""
    said = []
    for arm, lost in (
        ("context-aware bias", "freezing the scale"),
        ("implicit scaling", "dropping the bias"),
    ):
        control = float(np.nanmean(cost.of(arm, outcome, control=True)))
        if control > 0:
            said.append(
                f"{lost} costs {float(np.nanmean(cost.of(arm, outcome))) / control:.2g} x its control"
            )
    return "".join(f"; {words}" for words in said)


def _named(name: str, x: Interval) -> dict[str, float | None]:
    return _ends(name, f"{name}_low", f"{name}_high", x)


def _ends(value: str, low: str, high: str, x: Interval) -> dict[str, float | None]:
    return {
        name: float(number) if np.isfinite(number) else None
        for name, number in zip((value, low, high), x, strict=True)
    }
