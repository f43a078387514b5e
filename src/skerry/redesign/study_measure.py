"""What a study measures on a finished decoder: its loss window by window, its outliers layer by layer, and what rounding and pruning cost it.

    loss_w              mean loss of held-out window w, nats per token
    loss_w under s      the same with weights and inputs of linear maps rounded to nearest by scheme s (`skerry.impact`)
    loss_w at p         the same without the share p of smallest weights of every map

Losses stay one number per window: two decoders that read the same windows are compared window by window. Windows are cut evenly from the
held-out text and do not overlap as long as there is enough of it. Limit: a scheme of 16 bits gives the untouched loss, number for number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy.quiet import quiet
from skerry.corpus import Batch
from skerry.errors import BadText
from skerry.impact.calibrate import calibrate
from skerry.impact.evaluate import Evaluator
from skerry.impact.prune import prune
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.redesign.births import Births
from skerry.redesign.study_plan import Measured
from skerry.run import Progress, Silent

BATCH = 32
Row = dict[str, Any]


def even_windows(
    ids: np.ndarray, count: int, *, context: int, bos: int | None
) -> Int[Tensor, "sample position"]:
    """Windows at even distances over a text, each behind the beginning-of-sequence token.

    Args:
        ids: The text.
        count: Windows.
        context: Tokens per window, the beginning-of-sequence token included.
        bos: Its id; None for windows without one.

    Raises:
        BadText: The text is shorter than one window.
    """
    body = context - (bos is not None)
    if len(ids) < body:
        raise BadText(
            f"{len(ids)} held-out tokens, a window has {body}: give more text or a larger held-out share"
        )
    starts = np.linspace(0, len(ids) - body, count).astype(int)
    rows = np.stack([np.asarray(ids[s : s + body]) for s in starts]).astype(np.int64)
    if bos is not None:
        rows = np.concatenate([np.full((count, 1), bos), rows], axis=1)
    return torch.from_numpy(rows)


def batches_of(windows: Int[Tensor, "sample position"], size: int = BATCH) -> list[Batch]:
    """Windows as batches without padding."""
    keep = torch.ones_like(windows, dtype=torch.bool)
    number = torch.arange(len(windows))
    return [
        Batch(windows[i : i + size], keep[i : i + size], number[i : i + size])
        for i in range(0, len(windows), size)
    ]


def window_losses(model: nn.Module, windows: Int[Tensor, "sample position"]) -> list[float]:
    """Mean loss of each window in nats per token; a model in training is left as it was."""
    device = next(model.parameters()).device
    found: list[Tensor] = []
    with quiet(model):
        for ids in windows.split(BATCH):
            ids = ids.to(device)
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            found.append(loss.double().mean(-1).cpu())
    return _floats(torch.cat(found).numpy())


def measure(
    model: nn.Module,
    held_out: Int[Tensor, "sample position"],
    calibration: Int[Tensor, "other position"],
    *,
    measured: Measured,
    step: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything but the curve; the model is left as it was.

    Args:
        model: A trained decoder.
        held_out: Windows that judge.
        calibration: Windows on which static ranges are found.
        measured: What to measure.
        step: Optimizer steps done, for the rows.
        progress: Told how far it is.

    Returns:
        `loss` per window; `layers`, rows of a monitor; `compressed`, what and `loss` per window, or a `note`; `parameters`.
    """
    progress = progress or Silent()
    progress.start("measuring", 2 + len(measured.schemes) + len(measured.sparsities), "reading")
    with quiet(model):
        births = Births(model, rows=len(held_out))
        layers = births.measure(step, held_out)
        progress.advance()
        anatomy, calibrating = births.anatomy, batches_of(calibration)
        evaluator = Evaluator(anatomy, batches_of(held_out))
        progress.advance()
        compressed: list[Row] = []
        for text in measured.schemes:
            scheme = Scheme.parse(text)
            simulation = Simulation(scheme, grids=calibrate(anatomy, calibrating, scheme))
            scores = evaluator.score(simulation.open(anatomy))
            compressed.append({"what": str(scheme), "loss": _floats(scores.per_input["loss"])})
            progress.advance()
        for sparsity in measured.sparsities:
            scores = evaluator.score(prune(anatomy, "magnitude", sparsity))
            compressed.append({"what": pruned(sparsity), "loss": _floats(scores.per_input["loss"])})
            progress.advance()
    progress.done()
    return {
        "loss": _floats(evaluator.original.per_input["loss"]),
        "layers": layers,
        "compressed": compressed,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def pruned(sparsity: float) -> str:
    """What a pruning is called in tables: `magnitude-50%`."""
    return f"magnitude-{100 * sparsity:g}%"


def headline(layers: Sequence[Row]) -> dict[str, float]:
    """The outliers of a decoder in one number per kind, from the rows of its layers.

    Returns:
        `max_to_median` and `kurtosis` of the stream behind a block, the largest of all blocks; `first_share` of the strongest head of all
        and `value_drain` in it; `sink_rate`, mean over blocks; `down_in_max` and `down_in_max_to_median`, largest; `weight_ratio` of the
        down projections, largest. A number that no row has is left out.
    """

    def column(site: str, name: str) -> list[float]:
        return [r[name] for r in layers if r["site"] == site and r.get(name) is not None]

    found = {
        "max_to_median": max(column("resid.out", "max_to_median"), default=None),
        "kurtosis": max(column("resid.out", "kurtosis"), default=None),
        "down_in_max": max(column("mlp.down.in", "abs_max"), default=None),
        "down_in_max_to_median": max(column("mlp.down.in", "max_to_median"), default=None),
        "weight_ratio": max(column("w.down", "weight_ratio"), default=None),
    }
    heads = [r for r in layers if r["site"] == "attn.probs" and r.get("first_share") is not None]
    if heads:
        strongest = max(heads, key=lambda r: r["first_share"])
        found |= {"first_share": strongest["first_share"], "value_drain": strongest["value_drain"]}
        found["sink_rate"] = sum(r["sink_rate"] for r in heads) / len(heads)
    return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


def _floats(x: np.ndarray) -> list[float]:
    return [round(float(v), 7) for v in x]
