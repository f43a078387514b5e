"""A short distillation on unlabelled text: the changed decoder learns the original's prediction again.

    loss = mean over tokens of sum_v P(v) log(P(v) / Q(v)),   P the original behind its first token, Q the decoder without it

AdamW without weight decay, warm-up over a tenth of the steps, cosine to a tenth of the rate, gradients clipped at 1. The decoder is trained
in float32 and rounded back at the end. The order of the inputs is a function of the seed. One input in eight is not trained on; where the
divergence on these is no smaller than before, the training is undone: a repair must not harm. Short enough to be done again: nothing is kept
of a killed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.quiet import quiet
from skerry.causes.outcome import LOGITS_AT_ONCE
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, EmptyBatch, UnknownOption
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.schedule import factor
from skerry.run import Progress, Silent

TRAINED = ("all", "attention", "sinks")
CLIP = 1.0
LISTED = 10
HELD_OUT = 8


@dataclass(frozen=True)
class Distillation:
    """How the decoder is repaired.

    Attributes:
        steps: Optimiser steps; 0 for none.
        learning_rate: Peak.
        batch: Inputs per step.
        train: `all` parameters, those of `attention`, or only the `sinks` (the variant's own).
        seed: Of the order of the inputs.
    """

    steps: int = 200
    learning_rate: float = 1e-4
    batch: int = 16
    train: str = "all"
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UnknownOption: A number out of range, or an unknown word.
        """
        if self.train not in TRAINED:
            raise UnknownOption(f"train is {self.train!r}; it is one of {', '.join(TRAINED)}")
        if self.steps < 0 or self.batch < 1:
            raise UnknownOption(
                f"steps is {self.steps} and batch is {self.batch}; they must be at least 0 and 1"
            )
        if not 0 < self.learning_rate < 1:
            raise UnknownOption(f"the learning rate is {self.learning_rate}; it must be between 0 and 1")


class Distilled(NamedTuple):
    """What a distillation did.

    Attributes:
        rows: The divergence over time, about ten rows of step and mean kl, in nats per token, since the row before.
        before: Divergence on inputs that were not trained on, before it; None where there were too few.
        after: The same behind it.
    """

    rows: list[dict[str, Any]]
    before: float | None = None
    after: float | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the decoder is the trained one."""
        return bool(self.rows) and (self.before is None or self.after is None or self.after < self.before)

    def words(self) -> str:
        """One sentence, without its full stop."""
        if self.before is None:
            return (
                f"distilled: divergence {self.rows[0]['kl']:.4f} at first, {self.rows[-1]['kl']:.4f} at last"
            )
        found = f"divergence {self.before:.4f} before and {self.after:.4f} after, on inputs it did not read"
        return f"distilled: {found}" if self.is_kept else f"the distillation did harm and was undone: {found}"


def distil(
    student: DecoderForCausalLM,
    teacher: Anatomy,
    batches: Sequence[Batch],
    how: Distillation,
    progress: Progress | None = None,
) -> Distilled:
    """Train the student in place, and undo it where that did harm.

    Args:
        student: A decoder that reads inputs without their first token.
        teacher: The original model, left as it is.
        batches: Unlabelled text, whole inputs.
        how: Steps, rate, which parameters.
        progress: Told how far it is.

    Raises:
        BrokenModel: The divergence is no number; the step is named.
    """
    how.check()
    progress = progress or Silent()
    if not how.steps:
        return Distilled([])
    ids = [row for b in batches for row in zip(b.input_ids, b.keep, strict=True)]
    if not ids:
        raise EmptyBatch("distillation needs text, and no input was given")
    dtype = next(student.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        student.float()
    held = ids[len(ids) - len(ids) // HELD_OUT :]
    ids = ids[: len(ids) - len(held)]
    chosen = _choose(student, how.train)
    kept = [p.detach().clone() for p in chosen]
    before = _mean(student, teacher, held)
    rows = _train(student, teacher, ids, how, chosen, progress)
    student.eval()
    done = Distilled(rows, before, _mean(student, teacher, held))
    if not done.is_kept:
        with torch.no_grad():
            for parameter, old in zip(chosen, kept, strict=True):
                parameter.copy_(old)
    student.requires_grad_(True)
    student.to(dtype=dtype)  # type: ignore[call-arg]
    return done


def _train(
    student: DecoderForCausalLM,
    teacher: Anatomy,
    ids: list[tuple[Tensor, Tensor]],
    how: Distillation,
    chosen: list[Tensor],
    progress: Progress,
) -> list[dict[str, Any]]:
    """All steps, in place; the divergence over time."""
    optimiser = torch.optim.AdamW(chosen, lr=how.learning_rate, weight_decay=0.0)
    order = _order(len(ids), how)
    rows: list[dict[str, Any]] = []
    since: list[float] = []
    progress.start("distillation", how.steps, "step")
    student.train()
    for step in range(how.steps):
        scale = factor(step, schedule="cosine", steps=how.steps, warmup=max(1, how.steps // 10), final=0.1)
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * scale
        optimiser.zero_grad(set_to_none=True)
        kl = _step(student, teacher, [ids[i] for i in order[step]])
        if kl != kl:
            raise BrokenModel(
                f"distillation: the divergence is no number at step {step}; try a smaller learning rate than {how.learning_rate:g}"
            )
        torch.nn.utils.clip_grad_norm_(chosen, CLIP)
        optimiser.step()
        since.append(kl)
        if (step + 1) % max(1, how.steps // LISTED) == 0 or step + 1 == how.steps:
            rows.append({"step": step + 1, "kl": sum(since) / len(since)})
            since = []
        progress.advance()
    progress.done()
    return rows


def _mean(student: DecoderForCausalLM, teacher: Anatomy, inputs: list[tuple[Tensor, Tensor]]) -> float | None:
    """Divergence in nats per token; None without inputs."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for ids, keep in inputs:
            total += float(divergence(student, teacher, ids[None], keep[None]))
            tokens += int(keep[1:].sum())
    return total / tokens if tokens else None


def _choose(student: DecoderForCausalLM, train: str) -> list[Tensor]:
    words = {"all": "", "attention": ".self_attn.", "sinks": ".self_attn.variant."}
    found: list[Tensor] = []
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(words[train] in name)
        if parameter.requires_grad:
            found.append(parameter)
    if not found:
        raise UnknownOption(f"this decoder has no parameters of {train!r} to train")
    return found


def _order(count: int, how: Distillation) -> list[list[int]]:
    """Inputs of every step: one permutation after the other."""
    generator = torch.Generator().manual_seed(how.seed)
    stream: list[int] = []
    while len(stream) < how.steps * how.batch:
        stream += torch.randperm(count, generator=generator).tolist()
    return [stream[i * how.batch : (i + 1) * how.batch] for i in range(how.steps)]


def _step(student: DecoderForCausalLM, teacher: Anatomy, inputs: list[tuple[Tensor, Tensor]]) -> float:
    """Backward over one step's inputs in pieces whose logits fit; the mean divergence."""
    length = max(len(ids) for ids, _ in inputs)
    vocab = int(student.config.vocab_size)
    size = max(1, LOGITS_AT_ONCE // max(1, length * vocab))
    total = sum(int(keep[1:].sum()) for _, keep in inputs)
    mean = 0.0
    for i in range(0, len(inputs), size):
        ids, keep = _padded(inputs[i : i + size], length)
        loss = divergence(student, teacher, ids, keep) / max(1, total)
        loss.backward()  # type: ignore[no-untyped-call]
        mean += float(loss.detach())
    return mean


def _padded(inputs: list[tuple[Tensor, Tensor]], length: int) -> tuple[Tensor, Tensor]:
    """Inputs of batches of several lengths, padded behind."""
    ids = torch.stack([torch.nn.functional.pad(i, (0, length - len(i))) for i, _ in inputs])
    keep = torch.stack([torch.nn.functional.pad(k, (0, length - len(k))) for _, k in inputs])
    return ids, keep


def divergence(student: DecoderForCausalLM, teacher: Anatomy, ids: Tensor, keep: Tensor) -> Float[Tensor, ""]:
    """Sum over tokens, behind the first, of the divergence of the student from the teacher."""
    device = next(student.parameters()).device
    ids, keep = ids.to(device), keep.to(device)
    mask = {} if bool(keep.all()) else {"attention_mask": keep.long()}
    with quiet(teacher.model):
        target = teacher.model(ids, use_cache=False, **mask).logits[:, 1:].float().log_softmax(-1)
    mask = {} if bool(keep.all()) else {"attention_mask": keep[:, 1:].long()}
    log_q = student(ids[:, 1:], use_cache=False, **mask).logits.float().log_softmax(-1)
    kl = (target.exp() * (target - log_q)).sum(-1)
    return torch.where(keep[:, 1:], kl, 0.0).sum()
