"""The unified objective: what a training minimises, in parts that are added up.

    total = loss + sum_k weight_k penalty_k,    computed in a forward that may be noised, with gradients that may be private

    loss            mean cross-entropy of the next token                            `decoder.next_token_loss`
    kurtosis        mean over sites                                                 `objective_kurtosis`
    maximum         mean over sites                                                 `objective_maximum`
    z_loss          of the head's logits                                            `objective_z`
    quantization    changes the forward, adds nothing                               `objective_rounding`
    private         changes the gradient, adds nothing                              `private`

Limit: no part, or parts without effect, is the plain loss and its gradient bit for bit: nothing is hooked then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy import resolve
from skerry.anatomy.sites import Site
from skerry.errors import NotPossible
from skerry.redesign.decoder import next_token_loss
from skerry.redesign.objective_kurtosis import kurtosis
from skerry.redesign.objective_maximum import maximum
from skerry.redesign.objective_rounding import Rounding
from skerry.redesign.objective_settings import KurtosisPenalty, MaximumPenalty, Settings, read_settings
from skerry.redesign.objective_sites import SiteReader, find_sites
from skerry.redesign.objective_z import z_loss
from skerry.redesign.private import (
    Privacy,
    PrivateGradients,
    epsilon_of,
    noise_for,
    num_windows,
    poisson_windows,
)


class ObjectiveLoss(NamedTuple):
    """The objective on one batch.

    Attributes:
        total: What is minimised.
        parts: `loss` and every penalty, as it is before its weight; in nats, or in the penalty's own units.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective:
    """A loss with everything that is added to it; a context manager, whose hooks live while it is open.

    Use `make_objective`.
    """

    def __init__(self, model: nn.Module, settings: Settings, *, seed: int, batch: int | None) -> None:
        """Find the places; nothing is hooked before the objective is opened."""
        self.settings, self.seed, self.batch = settings, seed, batch
        self._penalties: list[tuple[str, float, list[Site], Callable[[Tensor], Tensor]]] = []
        self._reader: SiteReader | None = None
        self._rounding: Rounding | None = None
        self._gradients: PrivateGradients | None = None
        self._noise = 0.0 if settings.private is None else settings.private.noise
        self._sample_rate: float | None = None
        self._stack: ExitStack | None = None
        if settings.kurtosis or settings.maximum or settings.quantization:
            self._place(model)

    def _place(self, model: nn.Module) -> None:
        anatomy, s = resolve(model), self.settings
        for name, part in (("kurtosis", s.kurtosis), ("maximum", s.maximum)):
            if part is not None:
                sites = find_sites(anatomy, part.sites, part.layers)
                self._penalties.append((name, part.weight, sites, _formula(part)))
        if self._penalties:
            self._reader = SiteReader(
                anatomy, sorted({s for _, _, found, _ in self._penalties for s in found})
            )
        if s.quantization is not None:
            from skerry.impact.scheme import Scheme

            scheme = Scheme.parse(s.quantization.scheme)
            self._rounding = Rounding(anatomy, scheme, probability=s.quantization.probability, seed=self.seed)

    @property
    def is_plain(self) -> bool:
        """Whether this is the next-token loss and nothing else."""
        return self.settings == Settings()

    @property
    def owns_backward(self) -> bool:
        """Whether gradients must come from `backward` and `finish`."""
        return self.settings.private is not None

    @property
    def draw(self) -> Callable[..., Int[Tensor, "sample position"]] | None:
        """How windows must be drawn, a function with the arguments of `text.window_batch`; None for any way."""
        return poisson_windows if self.owns_backward else None

    def __enter__(self) -> Objective:
        """Hook the model."""
        self._stack = ExitStack()
        for part in (self._reader, self._rounding):
            if part is not None:
                self._stack.enter_context(part.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the model as it was."""
        if self._stack is not None:
            self._stack.close()
        self._stack = None
        if self._gradients is not None:
            self._gradients.close()
            self._gradients = None

    def loss(
        self, model: Callable[..., Any], input_ids: Int[Tensor, "sample position"], *, number: int = 0
    ) -> ObjectiveLoss:
        """The objective on a batch, with its graph.

        Args:
            model: What the objective was made for, or a wrapper of it (DDP, compiled where nothing is hooked).
            input_ids: The windows.
            number: Of the batch; what is random in the forward is a function of the seed and of it.

        Raises:
            NotPossible: The objective hooks the model and is not open.
        """
        self._begin(number)
        found = self._loss(model, input_ids)
        total = found.pop("total")
        return ObjectiveLoss(total, found)

    def backward(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "sample position"],
        *,
        number: int = 0,
        share: float = 1.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> ObjectiveLoss:
        """The objective on a batch, and its gradient added to the parameters'; the parts come without their graph.

        Args:
            model: As for `loss`.
            input_ids: The windows.
            number: As for `loss`.
            share: Factor on the gradient: 1 / accumulation.
            autocast: Opened around the forward, and not around the backward.
        """
        if self.settings.private is None:
            with autocast():
                found = self.loss(model, input_ids, number=number)
            (found.total if share == 1.0 else found.total * share).backward()
            return ObjectiveLoss(found.total.detach(), {k: x.detach() for k, x in found.parts.items()})
        self._begin(number)
        parts = self._private(model).add(input_ids, self._loss, autocast=autocast)
        if not parts:
            nothing = torch.full((), torch.nan)
            return ObjectiveLoss(nothing, {"loss": nothing})
        return ObjectiveLoss(parts.pop("total"), parts)

    def finish(self, step: int) -> None:
        """To be called once per step, after its last `backward` and before anything looks at the gradient."""
        if self._gradients is not None:
            self._gradients.finish(step)

    def privacy(self, steps: int) -> Privacy | None:
        """What is promised after so many steps; None without private gradients.

        Raises:
            NotPossible: The objective was made without the number of windows.
        """
        private = self.settings.private
        if private is None:
            return None
        if self._sample_rate is None or self.batch is None:
            raise NotPossible(
                "privacy is a matter of how many windows there are; make the objective with tokens and context"
            )
        delta = self._delta
        epsilon = epsilon_of(
            noise=self._noise,
            sample_rate=self._sample_rate,
            steps=steps,
            delta=delta,
            accountant=private.accountant,
        )
        return Privacy(epsilon, delta, self._noise, private.clip, self._sample_rate, steps)

    @property
    def _delta(self) -> float:
        assert self.settings.private is not None and self._sample_rate is not None and self.batch is not None
        given = self.settings.private.delta
        return self._sample_rate / self.batch / 10 if given is None else given

    def account(self, *, windows: int, steps: int | None) -> None:
        """Settle the sampling rate and, for a wanted epsilon, the noise.

        Raises:
            NotPossible: Fewer windows than a batch, or an epsilon without the number of steps.
        """
        private = self.settings.private
        if private is None or self.batch is None:
            return
        if windows < self.batch:
            raise NotPossible(
                f"there are {windows} disjoint windows and a private batch expects {self.batch}; give more text or a smaller batch"
            )
        self._sample_rate = self.batch / windows
        if private.epsilon is not None:
            if steps is None:
                raise NotPossible("an epsilon is for a whole training; make the objective with its steps")
            self._noise = noise_for(
                epsilon=private.epsilon,
                delta=self._delta,
                sample_rate=self._sample_rate,
                steps=steps,
                accountant=private.accountant,
            )

    def _begin(self, number: int) -> None:
        if self._stack is None and (self._reader or self._rounding or self.settings.private):
            raise NotPossible("the objective looks into the model and is not open; use it in a `with` block")
        if self._rounding is not None:
            self._rounding.draw(number)

    def _private(self, model: nn.Module) -> PrivateGradients:
        assert self.settings.private is not None
        if self._gradients is None:
            if self.batch is None:
                raise NotPossible(
                    "private gradients are divided by the expected batch; make the objective with it"
                )
            self._gradients = PrivateGradients(
                model, self.settings.private, noise=self._noise, batch=self.batch, seed=self.seed
            )
        return self._gradients

    def _loss(self, model: Callable[..., Any], input_ids: Tensor) -> dict[str, Tensor]:
        logits = model(input_ids, use_cache=False).logits
        if self._rounding is not None:
            self._rounding.forget()
        loss = next_token_loss(logits, input_ids)
        parts, total = {"loss": loss}, loss
        seen = self._reader.take() if self._reader is not None else {}
        for name, weight, sites, formula in self._penalties:
            parts[name] = torch.stack([formula(seen[s]) for s in sites]).mean()
            total = total + weight * parts[name]
        if self.settings.z_loss is not None:
            parts["z_loss"] = z_loss(logits)
            total = total + self.settings.z_loss.weight * parts["z_loss"]
        return {**parts, "total": total}


def make_objective(
    model: nn.Module,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    batch: int | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    context: int | None = None,
    bos: int | None = None,
    accumulation: int = 1,
    compiled: bool = False,
) -> Objective:
    """The objective of a recipe.

    Args:
        model: What is trained, uncompiled; a few tokens are run through it where a part needs its places.
        settings: `Recipe.objective`; see `objective_settings`.
        seed: Of everything that is random.
        batch: Windows per step; private gradients need it.
        steps: Of the whole training; an epsilon that is asked for needs them.
        tokens: To train on; `privacy` needs them, with `context` and `bos`.
        context: Tokens per window.
        bos: Token that every window begins with.
        accumulation: Micro-batches per step.
        compiled: The model is to be compiled.

    Raises:
        UnknownOption: A setting that cannot be meant.
        UnknownSite: A site that the vocabulary or the model does not have.
        NotPossible: A scheme that needs calibration; a part that cannot be compiled; an epsilon without the numbers it follows from.
        MissingExtra: opacus is wanted and not installed.
    """
    read = read_settings(settings, compiled=compiled, accumulation=accumulation)
    if read.private is not None:
        from skerry.redesign.private import require_opacus

        require_opacus()
    objective = Objective(model, read, seed=seed, batch=batch)
    if tokens is not None and context is not None:
        objective.account(windows=num_windows(tokens, context=context, bos=bos), steps=steps)
    elif read.private is not None and read.private.epsilon is not None:
        raise NotPossible(
            "an epsilon follows from the number of windows; make the objective with tokens and context"
        )
    return objective


def _formula(part: KurtosisPenalty | MaximumPenalty) -> Callable[[Tensor], Tensor]:
    if isinstance(part, KurtosisPenalty):
        return lambda x: kurtosis(x, form=part.form, target=part.target)
    return lambda x: maximum(x, form=part.form, limit=part.limit, temperature=part.temperature)
