"""The built-in decoders side by side: same recipe, same text, other attention.

Each reads the inputs of the run, is read by the monitor of trainings, and is priced under rounding to nearest. The sink of a model is the head
that gives most to the first token among those whose first value vector is shorter than the others: attention that goes where nothing is fetched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from skerry.anatomy import Anatomy, load, resolve
from skerry.anatomy.attention import AttentionView, naive_probs
from skerry.anatomy.watch import watch
from skerry.corpus.batch import Batch
from skerry.impact.inputs import split
from skerry.impact.price_grid import ORIGINAL, price_grid
from skerry.impact.scheme import Scheme
from skerry.outliers.plan import Plan
from skerry.redesign.births import Births
from skerry.run import Progress, Run
from skerry.run.tables import from_rows
from skerry.run.twin_tables import TWIN_TABLES

STAGE = "twins"
SCHEMES = ("w8a8-tensor", "w6a6-tensor", "w4a4")
VERSION = 1
# A head sends its mass to the first token to be rid of it when it fetches less there than elsewhere.
SHORT_VALUE = 1.0
Row = dict[str, Any]


def compare_twins(run: Run, plan: Plan, twins: Sequence[str], progress: Progress) -> None:
    """The stage of a run that puts a built-in decoder beside its twins; skipped where it is there.

    Args:
        run: The run of the decoder, its findings written.
        plan: What was scanned.
        twins: Names of the others.
        progress: Told how far it is.
    """
    key = plan.key(STAGE, twins=list(twins), schemes=list(SCHEMES), twins_version=VERSION)
    if run.finished(STAGE, key):
        return
    start = time.perf_counter()
    rows: dict[str, list[Row]] = {"twins": [], "twin_costs": []}
    inputs = split(plan.feed)
    progress.start("comparing twins", 1 + len(twins), "model")
    for name in (plan.loaded.name, *twins):
        anatomy = plan.anatomy if name == plan.loaded.name else resolve(load(name).model)
        costs = price_grid(
            anatomy,
            inputs.scoring,
            [Scheme.parse(s) for s in SCHEMES],
            calibration=inputs.calibration,
            lenient=True,
            seed=plan.options.seed,
        )
        original = next(r for r in costs if r["scheme"] == ORIGINAL)
        rows["twins"].append({"model": name, "loss": original["value"], **describe(anatomy, inputs.scoring)})
        rows["twin_costs"] += [{"model": name, **r} for r in costs if r["scheme"] != ORIGINAL]
        progress.advance()
    progress.done()
    run.finish(
        STAGE,
        key,
        tables={table: from_rows(table, _only(table, rows[table])) for table in TWIN_TABLES},
        texts={f"{STAGE}.json": json.dumps(rows, allow_nan=False)},
        seconds=time.perf_counter() - start,
    )


def _only(table: str, rows: list[Row]) -> list[Row]:
    return [{name: row.get(name) for name in TWIN_TABLES[table]} for row in rows]


def describe(anatomy: Anatomy, batches: Sequence[Batch]) -> Row:
    """The outliers of one decoder in five numbers; columns of the table `twins`.

    Args:
        anatomy: The model.
        batches: Inputs that begin with the same token.
    """
    births = Births(anatomy, rows=len(batches[0].input_ids))
    rows = births.measure(0, batches[0].input_ids, batches[0].keep)
    stream = [r["max_to_median"] for r in rows if r["kind"] == "activation" and r["site"] == "resid.out"]
    return {
        "attention": getattr(anatomy.config, "attention", "softmax"),
        "num_parameters": sum(p.numel() for p in anatomy.model.parameters()),
        "max_to_median": max(x for x in stream if x is not None),
        **_sink(anatomy, batches[0]),
    }


def _sink(anatomy: Anatomy, batch: Batch) -> Row:
    heads: list[tuple[float, float, int, int]] = []

    def look(view: AttentionView) -> None:
        share, value = sink_of_heads(view)
        heads.extend(
            (s, v, view.layer, h) for h, (s, v) in enumerate(zip(share.tolist(), value.tolist(), strict=True))
        )

    import torch

    with torch.inference_mode(), watch(anatomy, on_attention=look):
        anatomy.model(input_ids=batch.input_ids.to(next(anatomy.model.parameters()).device))
    share, value, layer, head = max(
        [h for h in heads if h[1] < SHORT_VALUE] or heads, default=(None, None, None, None)
    )
    return {"sink_layer": layer, "sink_head": head, "sink_share": share, "sink_value": value}


def sink_of_heads(view: AttentionView, *, first_query: int = 8) -> tuple[Tensor, Tensor]:
    """Of every head the mean attention on the first token, from queries at least 8 tokens away, and the norm of its value beside the others'."""
    probs = naive_probs(view)
    assert view.value is not None, "a decoder of ours shows its values"
    norms = view.value.float().norm(dim=-1).mean(0)
    ratio = norms[:, 0] / norms[:, 1:].mean(-1)
    return probs[:, :, first_query:, 0].mean((0, 2)), ratio.repeat_interleave(view.num_heads // len(ratio))
