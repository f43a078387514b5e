"""What a change costs the whole model: loss, perplexity, divergence and agreement, or, of an encoder, distance, cosine and neighbours.

Causal language model, per token that is predicted (p the untouched model's prediction, q the changed one's):

    loss = -log q(next),  perplexity = exp(mean loss),  kl = sum_v p(v) log(p(v) / q(v)),  top1 = [argmax p = argmax q]

in nats. Without a head that predicts the next token (encoders), per input (h the last hidden states, e = mean of h over its tokens):

    distance    see `skerry.causes.outcome`: mean squared change of h in units of each channel's variance
    cosine      cos(e, e_clean)
    neighbours  share of the k inputs nearest to e_clean (by cosine, among all inputs read) that are among the k nearest to e; k = 10

Numbers of the whole model are means weighted by tokens (cosine and neighbours: by inputs). Limit: nothing changed gives kl 0, top1 1,
distance 0, cosine 1, neighbours 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.anatomy.model import Anatomy, run
from skerry.causes.bootstrap import Interval, bootstrap
from skerry.causes.outcome import LOGITS_AT_ONCE, Judge, Reference, last_hidden
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, UsageError

NEIGHBOURS = 10
# Names of what is measured per input, of a causal model and of an encoder.
CAUSAL = ("loss", "kl", "top1")
ENCODER = ("distance", "cosine", "neighbours")
# Logits that the untouched head must give again while something else is changed.
_PROBE_TOKENS = 4


class Scores(NamedTuple):
    """What a changed model gives; None where a measure has no meaning for the model.

    Attributes:
        loss: Mean next-token loss, nats per token.
        perplexity: exp(loss).
        kl: Mean divergence from the untouched model, nats per token.
        top1: Share of tokens whose most likely next token is the untouched model's.
        distance: Mean squared change of the last hidden states, in variances.
        cosine: Mean cosine of an input's embedding with the untouched one.
        neighbours: Mean share of an input's nearest inputs that stay.
        per_input: Each measure per input, float64 [sample]; NaN for an input without a token that counts.
    """

    loss: float | None
    perplexity: float | None
    kl: float | None
    top1: float | None
    distance: float | None
    cosine: float | None
    neighbours: float | None
    per_input: dict[str, np.ndarray]


class Evaluator:
    """Inputs that the untouched model has read, to score what is done to it.

    Args:
        anatomy: The untouched model; it is run once.
        batches: The inputs.
        prefix: Token ids put before every input while something is scored, and not counted; the untouched model reads the inputs
            without them.
        skip: First tokens of every input that only the untouched model reads; what it predicts there is not counted. Other models read
            the inputs without them.

    Attributes:
        damage: What a change is priced in: `loss`, or `distance` without a head that predicts the next token.
        original: Scores of the untouched model.
        weights: Tokens of each input that count for the damage, float64 [sample].

    Raises:
        EmptyBatch: There is no input.
    """

    def __init__(
        self, anatomy: Anatomy, batches: Sequence[Batch], *, prefix: Sequence[int] = (), skip: int = 0
    ) -> None:
        if not len(batches):
            raise EmptyBatch("nothing to score: no input was given")
        self.anatomy, self.prefix, self.skip = anatomy, tuple(prefix), skip
        self._whole, self.batches = list(batches), [b.behind(skip) for b in batches]
        self.judge = HeadJudge(anatomy)
        self.damage = "distance" if self.judge.vocab is None else "loss"
        self._clean = [self.judge.last(batch, ())[:, skip:] for batch in self._whole]
        self._probe = None if self.judge.vocab is None else self._probe_head()
        self.weights = np.concatenate([self.judge.num_counted(b) for b in self.batches])
        self.original = self._scores(self.judge, self._clean)

    def score(self, *contexts: AbstractContextManager[Any]) -> Scores:
        """What the model gives while these contexts are open, opened in this order.

        Raises:
            UsageError: They change the head, which the untouched model's prediction is read from.
        """
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            self._check_head()
            return self._scores(self.judge, self._read(self.judge))

    def score_model(self, anatomy: Anatomy) -> Scores:
        """What another model, of the same tokens, gives beside the untouched one.

        Raises:
            UsageError: The untouched model's head was changed meanwhile: the two share memory.
        """
        self._check_head()
        judge = HeadJudge(anatomy)
        return self._scores(judge, self._read(judge))

    def change(self, after: Scores, before: Scores | None = None, *, seed: int = 0) -> Interval:
        """Mean change of the damage with its paired interval over inputs.

        Args:
            after: With the change.
            before: Without; the untouched model by default.
            seed: Of the resampling.
        """
        old = (before or self.original).per_input[self.damage]
        return bootstrap(after.per_input[self.damage] - old, self.weights, seed=seed)

    def _read(self, judge: HeadJudge) -> list[Tensor]:
        if judge is self.judge:
            return [judge.last(batch, self.prefix)[:, self.skip :] for batch in self._whole]
        return [judge.last(batch, self.prefix) for batch in self.batches]

    def _probe_head(self) -> Tensor:
        return self.judge.log_probs(self._clean[0][:1, :_PROBE_TOKENS])

    def _check_head(self) -> None:
        if self._probe is not None and not torch.allclose(self._probe, self._probe_head(), atol=1e-4):
            raise UsageError(
                "the head of the untouched model is changed, so its own prediction is gone; change a copy of the model and use score_model"
            )

    def _scores(self, judge: HeadJudge, last: Sequence[Tensor]) -> Scores:
        per_input = self._causal(judge, last) if self.judge.vocab is not None else self._encoder(last)
        mean = {name: _mean(x, self.weights if name in _BY_TOKEN else None) for name, x in per_input.items()}
        return Scores(
            loss=mean.get("loss"),
            perplexity=None if "loss" not in mean else float(np.exp(min(mean["loss"], 700.0))),
            kl=mean.get("kl"),
            top1=mean.get("top1"),
            distance=mean.get("distance"),
            cosine=mean.get("cosine"),
            neighbours=mean.get("neighbours"),
            per_input=per_input,
        )

    def _causal(self, judge: HeadJudge, last: Sequence[Tensor]) -> dict[str, np.ndarray]:
        parts = [
            judge.against(batch, new, old, self.judge)
            for batch, new, old in zip(self.batches, last, self._clean, strict=True)
        ]
        return {name: torch.cat([p[name] for p in parts]).numpy() for name in CAUSAL}

    def _encoder(self, last: Sequence[Tensor]) -> dict[str, np.ndarray]:
        rows = list(zip(self.batches, last, self._clean, strict=True))
        distance = [self.judge.compare(b, new, Reference(old, {}))["distance"] for b, new, old in rows]
        new = torch.cat([embedding(b, x) for b, x, _ in rows])
        old = torch.cat([embedding(b, x) for b, _, x in rows])
        return {
            "distance": torch.cat(distance).numpy(),
            "cosine": (new * old).sum(-1).numpy(),
            "neighbours": agreement(new, old).numpy(),
        }


_BY_TOKEN = (*CAUSAL, "distance")


class HeadJudge(Judge):
    """A judge that also says how often the most likely token stays, and takes the untouched prediction from another model's head."""

    @torch.no_grad()
    def last(self, batch: Batch, prefix: Sequence[int]) -> Float[Tensor, "sample position channel"]:
        """Last hidden states of a batch behind a prefix, without those of the prefix."""
        if not prefix:
            return last_hidden(run(self.anatomy, batch.input_ids, batch.keep))
        first = torch.tensor(prefix, dtype=batch.input_ids.dtype).expand(len(batch.input_ids), -1)
        ids = torch.cat([first, batch.input_ids], dim=1)
        keep = torch.cat([torch.ones_like(first, dtype=torch.bool), batch.keep], dim=1)
        return last_hidden(run(self.anatomy, ids, keep))[:, len(prefix) :]

    def log_probs(self, last: Tensor) -> Float[Tensor, "sample position vocabulary"]:
        """Log-probabilities of the next token, from the last hidden states."""
        with torch.no_grad():
            return self._log_probs(last)

    def num_counted(self, batch: Batch) -> np.ndarray:
        """Tokens of each input that count: those that are predicted, or all that are kept."""
        counts = batch.keep if self.vocab is None else batch.keep[:, 1:] & batch.keep[:, :-1]
        return counts.sum(-1).double().cpu().numpy()

    @torch.no_grad()
    def against(self, batch: Batch, last: Tensor, clean: Tensor, untouched: HeadJudge) -> dict[str, Tensor]:
        """Loss, divergence and agreement per input, float64 [sample]; NaN for an input in which nothing is predicted."""
        counts = (batch.keep[:, 1:] & batch.keep[:, :-1]).to(last.device)
        targets = batch.input_ids[:, 1:].to(last.device)
        size = max(1, LOGITS_AT_ONCE // max(1, last.shape[1] * (self.vocab or 1)))
        parts: dict[str, list[Tensor]] = {name: [] for name in CAUSAL}
        for i in range(0, len(last), size):
            some = slice(i, i + size)
            log_q = self.log_probs(last[some, :-1])
            # The very same states have the very same prediction: the untouched model itself.
            same = last is clean and untouched is self
            log_p = log_q if same else untouched.log_probs(clean[some, :-1])
            loss = -log_q.gather(-1, targets[some, :, None])[..., 0]
            kl = torch.zeros_like(loss) if same else (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)
            top1 = (log_q.argmax(-1) == log_p.argmax(-1)).to(loss.dtype)
            for name, x in (("loss", loss), ("kl", kl), ("top1", top1)):
                kept = torch.where(counts[some], x.double(), 0.0)
                parts[name].append((kept.sum(-1) / counts[some].sum(-1)).cpu())
        return {name: torch.cat(found) for name, found in parts.items()}


def embedding(batch: Batch, last: Tensor) -> Float[Tensor, "sample channel"]:
    """Unit vectors along the mean of the last hidden states over the tokens of each input, float64; NaN without a token."""
    keep = batch.keep.to(last.device)[..., None]
    mean = torch.where(keep, last.double(), 0.0).sum(1) / keep.sum(1)
    return (mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-30)).cpu()


def agreement(
    new: Float[Tensor, "sample channel"], old: Float[Tensor, "sample channel"], *, k: int = NEIGHBOURS
) -> Float[Tensor, "sample"]:
    """Share of each input's k nearest inputs by `old` that are among its k nearest by `new`; NaN with fewer than two inputs.

    With fewer than k other inputs all of them would be near whatever happened, so k is then half of them, at least one.
    """
    others = len(new) - 1
    if others < 1:
        return torch.full((len(new),), torch.nan, dtype=torch.float64)
    k = min(k, max(1, others // 2))
    near_new, near_old = _nearest(new, k), _nearest(old, k)
    both = (near_new[:, :, None] == near_old[:, None, :]).any(-1)
    return both.double().mean(-1)


def _nearest(x: Tensor, k: int) -> Int[Tensor, "sample near"]:
    likeness = x @ x.T
    likeness.fill_diagonal_(-torch.inf)
    return likeness.topk(k, dim=-1).indices


def _mean(x: np.ndarray, weights: np.ndarray | None) -> float:
    w = np.ones_like(x) if weights is None else weights
    good = np.isfinite(x) & (w > 0)
    return float((x[good] * w[good]).sum() / w[good].sum()) if good.any() else float("nan")


__all__ = ["Evaluator", "HeadJudge", "Scores", "agreement", "embedding"]
