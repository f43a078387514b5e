"""What every stage of a retrofit is judged by, on held-out inputs and on the same tokens for all: those behind the first.

    loss            next-token loss, nats per token, with the paired interval of its change against the original
    kl, top1        against the original's prediction
    max_to_median   largest max |x| / median |x| of the residual stream behind any block
    sink_share      largest mean attention of a head to the first token that it sees, from queries at least 8 tokens away
    explicit_share  largest mean share of a head's learned sink, which is no token
    value_ratio     of the head of `sink_share`: |v| of the first token by the mean |v| of the others
    schemes         loss of the quantized model, rounded to nearest (`skerry.impact`)

The original reads the whole input, a folded decoder what is behind the first token; so "the first token that it sees" is another token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skerry.anatomy.attention import AttentionView, naive_probs
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.quiet import quiet
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.corpus.batch import Batch
from skerry.impact.calibrate import calibrate
from skerry.impact.evaluate import Evaluator, Scores
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation

FAR = 8
OUTLIER_INPUTS = 32
Row = dict[str, Any]


class Judge:
    """Scores the original and what was made of it.

    Args:
        original: The original model; it must stay as it is.
        judging: Held-out inputs, whole.
        calibration: Inputs for static ranges, whole.
        schemes: Under which every stage is quantized.
        seed: Of the intervals.
    """

    def __init__(
        self,
        original: Anatomy,
        judging: Sequence[Batch],
        calibration: Sequence[Batch],
        schemes: Sequence[Scheme],
        *,
        seed: int = 0,
    ) -> None:
        self.anatomy, self.whole, self.calibration = original, list(judging), list(calibration)
        self.schemes, self.seed = list(schemes), seed
        self.evaluator = Evaluator(original, judging, skip=1)

    def original(self) -> Row:
        """The original."""
        rounded = {}
        for scheme in self.schemes:
            grids = calibrate(self.anatomy, self.calibration, scheme)
            scores = self.evaluator.score(Simulation(scheme, grids=grids).open(self.anatomy))
            rounded[str(scheme)] = self._cost(scores)
        outliers = read_outliers(self.anatomy, _few(self.whole))
        return {
            "stage": "original",
            **self._scores(self.evaluator.original),
            **outliers,
            "schemes": rounded,
        }

    def stage(self, name: str, anatomy: Anatomy) -> Row:
        """What was made of it, reading inputs without their first token.

        Args:
            name: Of the stage.
            anatomy: The decoder.
        """
        rounded = {}
        behind = [b.behind(1) for b in self.calibration]
        for scheme in self.schemes:
            simulation = Simulation(scheme, grids=calibrate(anatomy, behind, scheme))
            with simulation.open(anatomy):
                rounded[str(scheme)] = self._cost(self.evaluator.score_model(anatomy))
        outliers = read_outliers(anatomy, [b.behind(1) for b in _few(self.whole)])
        scores = self.evaluator.score_model(anatomy)
        return {"stage": name, **self._scores(scores), **outliers, "schemes": rounded}

    def _scores(self, scores: Scores) -> Row:
        return {**self._cost(scores), "kl": scores.kl, "top1": scores.top1}

    def _cost(self, scores: Scores) -> Row:
        change = self.evaluator.change(scores, seed=self.seed)
        names = ("change", "ci_low", "ci_high")
        finite = {n: x if x == x else None for n, x in zip(names, change, strict=True)}
        return {"loss": scores.loss, **finite}


def _few(batches: Sequence[Batch]) -> list[Batch]:
    """The first inputs: outliers need no more."""
    found: list[Batch] = []
    left = OUTLIER_INPUTS
    for b in batches:
        if left > 0:
            found.append(Batch(b.input_ids[:left], b.keep[:left], b.sample[:left]))
            left -= len(b.input_ids)
    return found


@torch.no_grad()
def read_outliers(anatomy: Anatomy, batches: Sequence[Batch]) -> Row:
    """Outliers of stream and attention over some inputs.

    Args:
        anatomy: The model.
        batches: Inputs as it reads them.
    """
    stream: dict[int, list[tuple[float, float]]] = {}
    first: dict[int, list[Tensor]] = {}
    learned: dict[int, list[Tensor]] = {}
    values: dict[int, list[Tensor]] = {}
    keep: list[Tensor] = []

    def activation(site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if site.part == "resid.out" and site.layer is not None:
            size = x[keep[-1].reshape(-1).to(x.device)].abs().float()
            stream.setdefault(site.layer, []).append((float(size.max()), float(size.median())))

    def attention(view: AttentionView) -> None:
        probs = naive_probs(view).nan_to_num(0.0)
        far = keep[-1][:, FAR:].to(probs.device)
        if bool(far.any()):
            weight = far[:, None].to(probs)
            first.setdefault(view.layer, []).append(
                (probs[:, :, FAR:, 0] * weight).sum((0, 2)) / weight.sum()
            )
            if view.sink_logits is not None:
                rest = (1 - probs[:, :, FAR:].sum(-1)).clamp(0, 1)
                learned.setdefault(view.layer, []).append((rest * weight).sum((0, 2)) / weight.sum())
        if view.value is not None and bool(keep[-1][:, 1:].any()):
            length = (
                view.value.float()
                .norm(dim=-1)
                .repeat_interleave(view.num_heads // view.value.shape[1], dim=1)
            )
            others = keep[-1][:, None, 1:].to(length)
            usual = (length[:, :, 1:] * others).sum((0, 2)) / others.sum()
            values.setdefault(view.layer, []).append(length[:, :, 0].mean(0) / usual)

    with (
        quiet(anatomy.model),
        watch(anatomy, ("resid.out",), on_activation=activation, on_attention=attention),
    ):
        for batch in batches:
            keep.append(batch.keep)
            run(anatomy, batch.input_ids, batch.keep)
    ratios = {
        layer: max(t for t, _ in seen) / max(sum(m for _, m in seen) / len(seen), 1e-30)
        for layer, seen in stream.items()
    }
    peak = max(ratios, key=lambda layer: ratios[layer])
    row: Row = {"max_to_median": ratios[peak], "peak_layer": peak}
    if first:
        shares = {layer: torch.stack(seen).mean(0) for layer, seen in first.items()}
        layer = max(shares, key=lambda i: float(shares[i].max()))
        head = int(shares[layer].argmax())
        row |= {"sink_share": float(shares[layer][head]), "sink_layer": layer, "sink_head": head}
        if layer in values:
            row["value_ratio"] = float(torch.stack(values[layer]).mean(0)[head])
    if learned:
        row["explicit_share"] = max(float(torch.stack(seen).mean(0).max()) for seen in learned.values())
    return row
