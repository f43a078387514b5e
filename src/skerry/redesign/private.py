"""Differentially private gradients: every window's gradient is cut to a norm, the sum gets noise (Abadi et al. 2016, arXiv 1607.00133).

    g = (1 / B) (sum_i g_i min(1, C / ||g_i||) + N(0, (sigma C)^2 I)),   B the expected number of windows in a batch

opacus cuts, adds the noise and keeps the account; what it is given is one gradient per window, of the whole objective on that window alone.
They are computed here, because opacus hooks modules, and what an attention variant keeps beside its linear layers (a sink's logit, a bias in
the keys) belongs to no module that is called. `loop` runs one window after the other, by the kernels that the training uses; `vmap` runs them
together from the definition of attention.

The promise: two texts that differ in one window give trainings that (epsilon, delta) holds apart, if windows are disjoint and each is in a
batch by its own coin (Poisson sampling): `poisson_windows` draws so. The noise comes from a seed, as everything here: whoever knows the seed
can take it off, so a release needs a seed that nobody keeps.
Limits: sigma = 0 and C above all norms is the plain gradient to rounding, and no privacy: epsilon is infinite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.errors import MissingExtra, NotPossible
from skerry.redesign.objective_settings import Private

# The total and the parts of the objective on some windows, of a model that is called with them.
WindowLoss = Callable[[Callable[..., Any], Int[Tensor, "sample position"]], dict[str, Tensor]]


def require_opacus() -> None:
    """Refuse early.

    Raises:
        MissingExtra: opacus is not installed.
    """
    try:
        import opacus  # noqa: F401
    except ImportError as absent:
        raise MissingExtra(
            "private gradients are cut, noised and accounted by opacus, which is not installed; `pip install 'skerry[private]'`"
        ) from absent


class Privacy(NamedTuple):
    """What a private training promises.

    Attributes:
        epsilon: Bound on the log-ratio of what any observer can see; infinite without noise.
        delta: Probability that the bound fails.
        noise: Standard deviation of the noise, in units of `clip`.
        clip: Largest norm of one window's gradient.
        sample_rate: Probability of a window to be in a batch.
        steps: Steps that are counted.
        unit: Of what the presence is hidden.
    """

    epsilon: float
    delta: float
    noise: float
    clip: float
    sample_rate: float
    steps: int
    unit: str = "one window, windows disjoint and drawn by independent coins"


def epsilon_of(*, noise: float, sample_rate: float, steps: int, delta: float, accountant: str) -> float:
    """Privacy after so many steps, by opacus' accountant."""
    if noise == 0:
        return math.inf
    if steps == 0:
        return 0.0
    from opacus.accountants import create_accountant

    account = create_accountant(accountant)
    account.history = [(noise, sample_rate, steps)]
    with _quietly():
        return float(account.get_epsilon(delta=delta, **_orders(accountant)))


def noise_for(*, epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str) -> float:
    """The noise whose privacy after so many steps is epsilon, by opacus."""
    from opacus.accountants.utils import get_noise_multiplier

    with _quietly():
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant=accountant,
                **_orders(accountant),
            )
        )


def _orders(accountant: str) -> dict[str, Any]:
    """Orders of the Renyi divergence: those of opacus, and larger ones, which much noise needs. The bound is the least over all."""
    if accountant != "rdp":
        return {}
    return {"alphas": [1 + x / 10 for x in range(1, 100)] + [*range(11, 64), 80, 96, 128, 256, 512, 1024]}


@contextmanager
def _quietly() -> Iterator[None]:
    """A bound at the largest order is loose and still a bound; log 0 at a sample rate of 1 is the -inf that it should be."""
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


class PrivateGradients:
    """Cuts and noises the gradients of one model.

    Args:
        model: Its trainable parameters get a private `.grad`.
        settings: Noise, clip and the way to gradients.
        noise: Standard deviation in units of the clip.
        batch: Expected number of windows in a batch, which the sum is divided by.
        seed: Of the noise, with the step.

    Raises:
        MissingExtra: opacus is not installed.
    """

    def __init__(self, model: nn.Module, settings: Private, *, noise: float, batch: int, seed: int) -> None:
        """Nothing of the model changes."""
        require_opacus()
        from opacus.optimizers import DPOptimizer

        self.model, self.settings, self.seed = model, settings, seed
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # opacus wraps an optimiser; this one only lends it the list of parameters and never takes a step.
        carrier = torch.optim.SGD(self.parameters, lr=0.0)
        self._opacus = DPOptimizer(
            carrier, noise_multiplier=noise, max_grad_norm=settings.clip, expected_batch_size=batch
        )
        # On a CPU one window keeps a core busy, and the fused kernels are worth more than fewer calls.
        on_cpu = self.parameters[0].device.type == "cpu"
        by = settings.gradients
        self.way = by if by != "auto" else "loop" if on_cpu else "vmap"

    def add(
        self,
        input_ids: Int[Tensor, "sample position"],
        loss: WindowLoss,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> dict[str, Tensor]:
        """Cut the gradients of some windows and add them up; the mean of each part over the windows.

        Args:
            input_ids: The windows; none at all is a batch, too.
            loss: Of windows.
            autocast: Opened around the forward.
        """
        told: list[dict[str, Tensor]] = []
        for some in input_ids.split(self.settings.chunk):
            if not len(some):
                continue
            way = self._by_loop if self.way == "loop" else self._by_vmap
            gradients, parts = way(some, loss, autocast)
            for p, g in zip(self.parameters, gradients, strict=True):
                p.grad_sample = g  # type: ignore[attr-defined]
            self._opacus.clip_and_accumulate()
            told.append({name: x.detach().sum() for name, x in parts.items()})
        self._forget()
        if not told:
            return {}
        return {name: torch.stack([t[name] for t in told]).sum() / len(input_ids) for name in told[0]}

    def finish(self, step: int) -> None:
        """Noise the sum and divide it: the parameters' `.grad` is what an optimiser may see. The noise is a function of seed and step."""
        generator = torch.Generator(self.parameters[0].device)
        generator.manual_seed(
            int(np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)[0] >> 1)
        )
        optimizer = self._opacus
        optimizer.generator = generator
        for p in self.parameters:
            if p.summed_grad is None:  # type: ignore[attr-defined]
                p.summed_grad = torch.zeros_like(p)  # type: ignore[attr-defined]
            # Of opacus, it only tells that nothing is accumulated here.
            p.grad_sample = torch.empty(0)  # type: ignore[attr-defined]
        optimizer.add_noise()
        optimizer.scale_grad()
        self._forget()
        for p in self.parameters:
            p.summed_grad = None  # type: ignore[attr-defined]

    def close(self) -> None:
        """Take everything off the parameters that opacus keeps there."""
        for p in self.parameters:
            for name in ("grad_sample", "summed_grad"):
                if hasattr(p, name):
                    delattr(p, name)

    def _forget(self) -> None:
        for p in self.parameters:
            p.grad_sample = None  # type: ignore[attr-defined]

    def _by_loop(
        self, input_ids: Tensor, loss: WindowLoss, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        rows, parts = [], []
        for one in input_ids.split(1):
            with autocast():
                found = loss(self.model, one)
            rows.append(_gradients(found["total"], self.parameters))
            parts.append({name: x.detach() for name, x in found.items()})
        stacked = [torch.stack(g) for g in zip(*rows, strict=True)]
        return stacked, {name: torch.stack([p[name] for p in parts]) for name in parts[0]}

    def _by_vmap(
        self, input_ids: Tensor, loss: WindowLoss, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        from torch.func import functional_call, grad, vmap

        with torch.no_grad(), autocast():
            self.model(input_ids[:1], use_cache=False)  # tables of positions must not be made inside

        def total(values: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            def call(x: Tensor, **options: Any) -> Any:
                return functional_call(self.model, values, (x,), options)

            with autocast():
                found = loss(call, ids[None])
            return found["total"], found

        values = {name: p.detach() for name, p in zip(self.names, self.parameters, strict=True)}
        each = vmap(grad(total, has_aux=True), in_dims=(None, 0), randomness="different")
        try:
            found, parts = each(values, input_ids)
        except RuntimeError as error:
            if "functorch" not in str(error) and "vmap" not in str(error):
                raise
            raise NotPossible(
                f"the gradients of this model cannot be computed together ({str(error).splitlines()[0][:120]}); take "
                "gradients 'loop', one window after the other"
            ) from error
        return [found[name] for name in self.names], parts


def _gradients(total: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def num_windows(num_tokens: int, *, context: int, bos: int | None) -> int:
    """Disjoint windows of a text."""
    return num_tokens // (context - (bos is not None))


def poisson_windows(
    ids: np.ndarray, *, count: int, context: int, bos: int | None, seed: int, step: int
) -> Int[Tensor, "sample position"]:
    """Disjoint windows, each in the batch by its own coin, a function of seed and step alone; as `text.window_batch` otherwise.

    Args:
        ids: The text.
        count: Expected number of windows; the number itself varies, and can be 0.
        context: Tokens per window, the beginning-of-sequence token included.
        bos: Its id; None for windows without one.
        seed: Of the training.
        step: Of the optimiser.

    Raises:
        NotPossible: The text has fewer windows than are expected in a batch.
    """
    body = context - (bos is not None)
    total = num_windows(len(ids), context=context, bos=bos)
    if count > total:
        raise NotPossible(
            f"the text has {total} disjoint windows of {context} tokens and a private batch expects {count}; give more text or a smaller batch"
        )
    draw = np.random.Generator(np.random.Philox(key=[seed, step]))
    chosen = np.flatnonzero(draw.random(total) < count / total)
    rows = np.asarray(ids[: total * body]).reshape(total, body)[chosen].astype(np.int64)
    if bos is not None:
        rows = np.concatenate([np.full((len(rows), 1), bos), rows], axis=1)
    return torch.from_numpy(rows)
