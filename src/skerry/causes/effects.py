"""Causal proof of each arrow of an outlier's life: change one thing, measure what follows in every later block, beside matched controls.

The arms are in `effect_outlier` (birth, dose, removal), `effect_weights` (super weight, start) and `effect_paths` (path, sink); what is read
is in `effect_reading`. Changes are paired by input: with - without, averaged over inputs, with a bootstrap interval. Every draw of a control
is one more change of the model; the share of draws that do as much is the p-value.

Which outliers: the strongest massive activation; without any, the strongest outlier channel that sits on few tokens; without those, the strongest of
all, with those of its sort that are born in the same block. Removal takes all that there are, in the inputs that carry these.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.causes.bootstrap import bootstrap, chance
from skerry.causes.carrier import Carrier, Places, SuperWeight
from skerry.causes.effect_arm import Arm, Chain
from skerry.causes.effect_case import Case, birth_site, choose_cases, read_values
from skerry.causes.effect_outlier import birth_arms, dose_arms, removal_arms
from skerry.causes.effect_paths import path_arms, sink_arms
from skerry.causes.effect_reading import Key, Reading
from skerry.causes.effect_weights import start_arms, weight_arms
from skerry.causes.notes import ALONE
from skerry.causes.outcome import Judge
from skerry.causes.rerun import Rerun
from skerry.causes.sinks import Sinks
from skerry.causes.spread_text import followed
from skerry.corpus.batch import Batch
from skerry.outliers.finding import Finding
from skerry.run.progress import Progress, Silent

# Draws of each control: with 19 the smallest p-value is 0.05. Fewer where the operations for them are more than about ten minutes of one core.
DRAWS, FEWEST_DRAWS = 19, 5
OPERATIONS = 5e13
# Runs that a draw costs in all groups together.
RUNS_PER_DRAW = 16
Rows = list[dict[str, Any]]


def measure_effects(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    carriers: Sequence[Carrier],
    places: Places,
    weights: Sequence[SuperWeight],
    sinks: Sinks,
    judge: Judge,
    *,
    findings: Sequence[Finding] = (),
    inputs: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    groups: Collection[str] | None = None,
) -> dict[str, Any]:
    """The table `effects`, and notes on what could not be done.

    Args:
        anatomy: The model with its places.
        batches: The text.
        carriers: Outliers of the residual stream, strongest first.
        places: Which tokens carry them.
        weights: Entries that carry their growth.
        sinks: Which keys are sinks.
        judge: Says how much a change hurts.
        findings: Those of the scan: where no entries carry the growth, its super weights are removed.
        inputs: Inputs used; see `choose_inputs`.
        draws: Random draws of each control; 19 by default, fewer in large models.
        seed: Of controls and resampling.
        progress: Told how far it is.
        groups: Groups of arms that are wanted; all by default.
    """
    progress, notes = progress or Silent(), [judge.note] if judge.note else []
    every = [c for c in carriers if birth_site(c) in anatomy.taps and _is_carried(c, places)]
    of_tokens = followed(every, batches, places) or every
    born = [c for c in of_tokens if c.birth_layer == of_tokens[0].birth_layer]
    chosen = [*of_tokens, *(c for c in every if c not in of_tokens)]
    cases = choose_cases(anatomy, batches, chosen, places, inputs, needed=born) if chosen else []
    if not cases:
        return {"effects": [], "notes": [_why_nothing(carriers)]}
    if not sinks.layers:
        notes.append("no attention sinks were found, so sink mass and value norms were not read")
    if judge.vocab is not None and _is_first(cases, born):
        notes.append(ALONE)
    read_values(anatomy, cases, chosen)
    if draws is None:
        draws = affordable_draws(anatomy, sum(case.batch.num_tokens for case in cases))
    if draws < DRAWS:
        notes.append(f"{draws} draws of each control: no p-value can be below {1 / (1 + draws):.2g}")
    chain = Chain(anatomy, cases, chosen, born, sinks, seed, draws)
    arms = [a for a in _arms(chain, weights, findings, notes) if groups is None or a.group in groups]
    measured = _measure(chain, arms, judge, progress)
    return {"effects": _rows(measured, seed), "notes": notes}


def affordable_draws(anatomy: Anatomy, num_tokens: int) -> int:
    """Draws of each control that ten minutes of one core allow; a run costs half a forward on average."""
    read = sum(p.numel() for p in anatomy.model.parameters() if p.dim() > 1)
    per_draw = RUNS_PER_DRAW * 0.5 * 2 * read * num_tokens
    return int(min(DRAWS, max(FEWEST_DRAWS, OPERATIONS // max(1, per_draw))))


def _is_carried(carrier: Carrier, places: Places) -> bool:
    return any(len(found.get(carrier.number, ())) for found in places.carried)


def _is_first(cases: Sequence[Case], born: Sequence[Carrier]) -> bool:
    """Whether these outliers sit at first tokens only."""
    return all(
        bool((case.batch.keep.cumsum(1).reshape(-1)[case.tokens[c.number]] == 1).all())
        for case in cases
        for c in born
    )


def _why_nothing(carriers: Sequence[Carrier]) -> str:
    if not carriers:
        return "no outlier of the residual stream was found, so no intervention was made"
    return "no input of at least two tokens carries an outlier at a place that can be changed, so no intervention was made"


def _arms(
    chain: Chain, weights: Sequence[SuperWeight], findings: Sequence[Finding], notes: list[str]
) -> Iterator[Arm]:
    yield from birth_arms(chain)
    yield from weight_arms(chain, weights, findings, notes)
    yield from dose_arms(chain)
    yield from path_arms(chain, notes)
    yield from start_arms(chain, weights, notes)
    yield from sink_arms(chain, notes)
    yield from removal_arms(chain, notes)


class _Measured(NamedTuple):
    """Outcomes of an arm: key to one value per input, with and without it."""

    arm: Arm
    clean: Mapping[Key, Tensor]
    value: Mapping[Key, Tensor]


def _measure(chain: Chain, arms: Sequence[Arm], judge: Judge, progress: Progress) -> list[_Measured]:
    progress.start("effects of outliers", len(arms) * len(chain.cases), "run")
    clean: list[Mapping[Key, Tensor]] = []
    value: list[list[Mapping[Key, Tensor]]] = [[] for _ in arms]
    for case in chain.cases:
        with torch.inference_mode():
            rerun = Rerun(chain.anatomy, case.batch, judge)
            reading = Reading(chain.anatomy, case, chain.born[0], chain.sinks)
            rerun.hidden(watch=[reading.open()], first_layer=0)
            clean.append({**reading.found, **{(name, None): x for name, x in rerun.clean.items()}})
            for found, arm in zip(value, arms, strict=True):
                reading = Reading(chain.anatomy, case, chain.born[0], chain.sinks)
                changes = arm.make(case, rerun)
                outcome = rerun.run(*changes, watch=[reading.open()])
                found.append({**reading.found, **{(name, None): x for name, x in outcome.items()}})
                progress.advance()
    progress.done()
    whole = _joined(clean)
    return [_Measured(arm, whole, _joined(found)) for arm, found in zip(arms, value, strict=True)]


def _joined(parts: Sequence[Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
    """Inputs of all cases, one after the other; NaN where a case has no value."""
    keys = {key for part in parts for key in part}
    sizes = [len(next(iter(part.values()))) for part in parts]
    missing = [torch.full((n,), math.nan, dtype=torch.float64) for n in sizes]
    return {
        key: torch.cat([part.get(key, gap).double() for part, gap in zip(parts, missing, strict=True)])
        for key in keys
    }


def _rows(measured: Sequence[_Measured], seed: int) -> Rows:
    null: dict[tuple[str, str, Key], list[float]] = {}
    for arm, key, change, _ in _changes(measured):
        if arm.is_control:
            null.setdefault((arm.group, arm.null, key), []).append(float(np.nanmean(change)))
    return [
        _row(arm, key, change, clean, null.get((arm.group, arm.null, key), []), seed)
        for arm, key, change, clean in _changes(measured)
    ]


def _changes(measured: Sequence[_Measured]) -> Iterator[tuple[Arm, Key, np.ndarray, np.ndarray]]:
    for arm, clean, value in measured:
        for key in sorted(value, key=lambda k: (k[0], -1 if k[1] is None else k[1])):
            name, layer = key
            is_later = layer is None or layer >= arm.first
            if name not in arm.unread and is_later and key in clean:
                change = (value[key] - clean[key]).numpy()
                if np.isfinite(change).any():
                    yield arm, key, change, clean[key].numpy()


def _row(
    arm: Arm, key: Key, change: np.ndarray, clean: np.ndarray, null: Sequence[float], seed: int
) -> dict[str, Any]:
    used = np.isfinite(change)
    before = float(clean[used].mean())
    interval = None if arm.is_control else bootstrap(change, seed=seed)
    mean = float(change[used].mean())
    return {
        "group": arm.group,
        "arm": arm.name,
        "layer": arm.layer,
        "site": arm.site,
        "dose": arm.dose,
        "control": arm.is_control,
        "draw": arm.draw,
        "outcome": key[0],
        "outcome_layer": key[1],
        "clean": before,
        "value": before + mean,
        "change": mean,
        "low": None if interval is None else _finite(interval.low),
        "high": None if interval is None else _finite(interval.high),
        "p_value": None if arm.is_control else chance(mean, null),
        "num_samples": int(used.sum()),
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
