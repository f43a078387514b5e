"""Learned rotations: R1 and R2 that make the quantized model's own loss small (SpinQuant, Liu et al. 2024, arXiv 2405.16406, section 3.2).

    minimise  L(Q_w(W(R)), Q_a(x(R)))  over orthogonal R,   starting from a randomised Hadamard matrix

L is the next-token loss of the quantized model; without a head that predicts the next token, the distance of its last hidden states from the
unquantized model's in variances. The model without rounding is the same for every R, so all of the change in L is rounding.

Cayley SGD (Li et al. 2020, arXiv 2002.01113, algorithm 1) stays on the orthogonal group: with momentum M of the gradient G,

    M <- beta M - G,   W = A - A^T,  A = M X^T - X X^T M X^T / 2,   M <- W X,   X <- (1 - a W / 2)^-1 (1 + a W / 2) X

and a = min(rate, 1 / |W|). The linear system is solved, not iterated, so X is orthogonal to rounding. Where the stream has LayerNorms W is
taken between projections that remove the mean: then W 1 = 0, and X keeps the all-ones vector at every step.

What is learned is X with R = R_start X, X = 1 at first: norms and R_start are folded into a copy of the model once. Limits: with no steps the
start comes back; the result is the best of all that were scored on all calibration inputs, the start among them, so it is never worse there.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from skerry.anatomy.model import Anatomy
from skerry.causes.outcome import Judge, last_hidden
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, NotPossible, UnknownOption
from skerry.impact.scheme import Scheme
from skerry.run import Progress, Silent
from skerry.tame.parts import Part
from skerry.tame.rotation import Plan, Rotation, hadamard_rotation, parts_of, plan_rotation
from skerry.tame.straight import quantized_inputs, quantized_weights, stored_maps

MOMENTUM = 0.9
_SMALLEST_VARIANCE = 1e-6
# The stream's rotation among the learned ones; the others are named by their layer.
_STREAM = -1


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned.

    Attributes:
        rotation: The best rotations that were scored.
        objective: `loss`, nats per token, or `distance`, variances.
        before: The objective of the quantized model with the start, on all inputs.
        after: The same with the result; at most `before`.
        scores: Step to objective, of all that were scored on all inputs.
        num_steps: Steps that were made.
        stopped: Why no more were made.
    """

    rotation: Rotation
    objective: Literal["loss", "distance"]
    before: float
    after: float
    scores: Mapping[int, float] = field(default_factory=dict)
    num_steps: int = 0
    stopped: str = ""

    def __repr__(self) -> str:
        return f"<Learned rotation: {self.objective} {self.before:.4g} -> {self.after:.4g} in {self.num_steps} steps; .rotation.fold(anatomy)>"


def learn_rotation(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    scheme: Scheme,
    *,
    plan: Plan | None = None,
    start: Rotation | None = None,
    steps: int = 64,
    rate: float = 1.5,
    score_every: int = 8,
    seconds: float | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Learned:
    """Learn rotations of the stream and of value heads for a quantized model; the model itself stays as it is.

    Args:
        anatomy: The model with its places.
        batches: Calibration inputs; one is read per step, all are read per score.
        scheme: How the model will be quantized. Weights are rounded to nearest.
        plan: What can be rotated; found here by default.
        start: Rotations to start from, which also say what is learned; by default Hadamard matrices wherever the plan allows one.
        steps: Of Cayley SGD, one batch each; the paper takes 100.
        rate: Learning rate of the first step; falls to 0 in a straight line.
        score_every: Steps between two scores on all inputs.
        seconds: No step is begun later than this; no limit by default.
        dtype: Of the copy that learns, e.g. bfloat16 for half the memory; the model's own by default. The rotations are float64.
        seed: Of the start and of the order of the batches.
        progress: Told how far it is.

    Raises:
        EmptyBatch: There is no input.
        NotPossible: Nothing can be rotated, or the loss is no number.
        UnknownOption: A budget below 0.
    """
    if not len(batches):
        raise EmptyBatch("nothing to learn from: no input was given")
    if steps < 0 or score_every < 1 or rate <= 0:
        raise UnknownOption(
            f"steps {steps}, score_every {score_every} and rate {rate}: at least 0, at least 1 and above 0 are needed"
        )
    plan = plan or plan_rotation(anatomy)
    start = start or hadamard_rotation(plan, seed=seed)
    if start.is_empty:
        raise NotPossible(
            f"nothing can be rotated: {'; '.join(why for _, able, why in plan.rows() if not able)}"
        )
    learner = _Learner(anatomy, batches, scheme, start, dtype)
    order = torch.Generator().manual_seed(seed)
    progress = progress or Silent()
    clock = time.monotonic()
    progress.start("learning rotations", steps, "step")
    scores = {0: learner.score()}
    best, best_score = learner.state(), scores[0]
    queue: list[int] = []
    made, stopped = 0, f"all {steps} steps were made"
    while made < steps:
        if seconds is not None and time.monotonic() - clock >= seconds:
            stopped = f"{seconds:g} seconds were over"
            break
        queue = queue or torch.randperm(len(batches), generator=order).tolist()
        learner.step(queue.pop(), rate * (1 - made / steps))
        made += 1
        progress.advance()
        if made % score_every == 0 or made == steps:
            scores[made] = learner.score()
            if scores[made] < best_score:
                best, best_score = learner.state(), scores[made]
    progress.done()
    if made not in scores:
        scores[made] = learner.score()
        if scores[made] < best_score:
            best, best_score = learner.state(), scores[made]
    why = f"learned in {made} Cayley steps from: {start.why or 'the rotations given'}"
    return Learned(_times(start, best, why), learner.objective, scores[0], best_score, scores, made, stopped)


def cayley_step(
    x: Tensor, gradient: Tensor, momentum: Tensor, *, rate: float, keep_ones: bool = False
) -> tuple[Tensor, Tensor]:
    """One step of Cayley SGD on [... n n] orthogonal matrices; new matrices and new momentum. See the module's text."""
    m = MOMENTUM * momentum - gradient
    xt = x.transpose(-1, -2)
    a = m @ xt - 0.5 * x @ (xt @ m @ xt)
    w = a - a.transpose(-1, -2)
    if keep_ones:
        w = w - w.mean(-1, keepdim=True)
        w = w - w.mean(-2, keepdim=True)
    size = torch.linalg.matrix_norm(w, ord=1)[..., None, None]
    step = torch.clamp(1 / size.clamp_min(1e-30), max=rate)
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    new = torch.linalg.solve(one - step / 2 * w, (one + step / 2 * w) @ x)
    return new, w @ x


class _Learner:
    """A copy of the model with norms and the start folded, and the matrices X that turn it further."""

    def __init__(
        self,
        anatomy: Anatomy,
        batches: Sequence[Batch],
        scheme: Scheme,
        start: Rotation,
        dtype: torch.dtype | None,
    ) -> None:
        self.batches, self.scheme = list(batches), scheme
        causal = Judge(anatomy).vocab is not None
        self.objective: Literal["loss", "distance"] = "loss" if causal else "distance"
        self.anatomy = _copied(anatomy)
        self.model = self.anatomy.model.eval().requires_grad_(False)
        plan = plan_rotation(self.anatomy)
        start.fold(self.anatomy, plan)
        if dtype is not None:
            self.model.to(dtype)
        has_stream = start.residual is not None
        self.keep_ones = has_stream and plan.keeps_ones
        self.parts: list[Part] = parts_of(
            self.anatomy, plan, with_stream=has_stream, layers=list(start.heads)
        )
        self.maps = stored_maps(self.anatomy)
        device = next(self.model.parameters()).device
        matrices = {**({_STREAM: start.residual} if has_stream else {}), **start.heads}
        self.x = {
            key: torch.eye(m.shape[-1], dtype=torch.float64, device=device).expand(m.shape).clone()
            for key, m in matrices.items()
            if m is not None
        }
        self.momentum = {key: torch.zeros_like(x) for key, x in self.x.items()}
        self.clean = [] if causal else [self._last_of(i, None).detach() for i in range(len(batches))]

    def state(self) -> dict[int, Tensor]:
        return {key: x.clone() for key, x in self.x.items()}

    def step(self, batch: int, rate: float) -> None:
        for x in self.x.values():
            x.requires_grad_(True)
        with torch.enable_grad():
            loss = self._objective(batch, self.x)
            gradients = torch.autograd.grad(loss, list(self.x.values()), allow_unused=True)
        for (key, x), g in zip(list(self.x.items()), gradients, strict=True):
            g = torch.zeros_like(x) if g is None else g
            if not bool(torch.isfinite(g).all()):
                raise NotPossible(
                    f"the gradient of the quantized model's {self.objective} is no number on calibration batch {batch}"
                )
            keep_ones = self.keep_ones and key == _STREAM
            self.x[key], self.momentum[key] = cayley_step(
                x.detach(), g, self.momentum[key], rate=rate, keep_ones=keep_ones
            )

    @torch.no_grad()
    def score(self) -> float:
        """The objective on all inputs, each token counted once."""
        total = count = 0.0
        for i in range(len(self.batches)):
            tokens = float(self._counted(i).sum())
            if tokens:
                total += tokens * float(self._objective(i, self.state()))
                count += tokens
        if not count:
            raise EmptyBatch("nothing to learn from: no token of the calibration inputs counts")
        if not math.isfinite(total):
            raise NotPossible(
                f"the quantized model's {self.objective} is no number on the calibration inputs"
            )
        return total / count

    def _counted(self, i: int) -> Tensor:
        keep = self.batches[i].keep
        return keep[:, 1:] & keep[:, :-1] if self.objective == "loss" else keep

    def _objective(self, i: int, x: Mapping[int, Tensor]) -> Tensor:
        counted, batch = self._counted(i), self.batches[i]
        if self.objective == "loss":
            logits = self._call(i, x).logits[:, :-1]
            counted = counted.to(logits.device)
            targets = batch.input_ids[:, 1:].to(logits.device)
            wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
            return F.cross_entropy(logits[counted].to(wide), targets[counted])
        new, old = self._last_of(i, x)[counted].float(), self.clean[i][counted].float()
        if _STREAM in x:  # the states of the clean model are turned by the start only
            new = new @ x[_STREAM].T.to(new)
        variance = old.var(0, correction=0)
        variance = variance.clamp_min(_SMALLEST_VARIANCE * float(variance.median()))
        return ((new - old).square() / variance).mean()

    def _last_of(self, i: int, x: Mapping[int, Tensor] | None) -> Tensor:
        """Last hidden states; of the unquantized model where no matrices are given."""
        with _keeping(self.anatomy.trunk) as found:
            self._call(i, x)
        return last_hidden(found[-1])

    def _call(self, i: int, x: Mapping[int, Tensor] | None) -> Any:
        batch = self.batches[i]
        device = next(self.model.parameters()).device
        kwargs: dict[str, Any] = {"use_cache": False} if hasattr(self.anatomy.config, "use_cache") else {}
        if not bool(batch.keep.all()):
            kwargs["attention_mask"] = batch.keep.long().to(device)
        ids = batch.input_ids.to(device)
        if x is None:
            with torch.no_grad():
                return self.model(ids, **kwargs)
        weights = quantized_weights(self.maps, self.scheme.weights, self._turned(x))
        with quantized_inputs(self.anatomy, self.maps, self.scheme):
            return functional_call(self.model, weights, (ids,), kwargs)

    def _turned(self, x: Mapping[int, Tensor]) -> dict[str, Tensor]:
        q, rs = x.get(_STREAM), {key: r for key, r in x.items() if key != _STREAM}
        out: dict[str, Tensor] = {}
        for part in self.parts:
            dtype = part.parameter.dtype
            turned = {layer: r.to(dtype) for layer, r in rs.items()}
            new = part.turn(part.view(part.parameter), None if q is None else q.to(dtype), turned)
            out[part.name] = part.view(new)
        return out


def _copied(anatomy: Anatomy) -> Anatomy:
    """A copy whose tensors can be differentiated through, also where the model was loaded under inference mode."""
    tensors = [t for t in (*anatomy.model.parameters(), *anatomy.model.buffers()) if t.is_inference()]
    known: dict[int, Any] = {
        id(t): nn.Parameter(t.clone(), requires_grad=False) if isinstance(t, nn.Parameter) else t.clone()
        for t in tensors
    }
    return copy.deepcopy(anatomy, known)


@contextmanager
def _keeping(module: nn.Module) -> Any:
    found: list[Any] = []
    handle = module.register_forward_hook(lambda _m, _a, out: found.append(out))
    try:
        yield found
    finally:
        handle.remove()


def _times(start: Rotation, x: Mapping[int, Tensor], why: str) -> Rotation:
    """R_start X."""
    residual = start.residual
    if residual is not None:
        residual = residual.double().cpu() @ x[_STREAM].cpu()
    heads = {layer: r.double().cpu() @ x[layer].cpu() for layer, r in start.heads.items()}
    return Rotation(residual, heads, why)
