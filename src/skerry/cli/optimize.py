"""skerry optimize."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document, progress_of

_Words = Annotated[str | None, Parameter(show_default=False)]
_Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Base:
    """The recipe that every trial starts from; what is not given is as in --recipe, or as in the laptop's default."""

    layers: int | None = None
    """Blocks (2)."""
    width: int | None = None
    """Channels of the residual stream (64)."""
    heads: int | None = None
    """Query heads (4)."""
    vocabulary: int | None = None
    """Tokens of the vocabulary (512)."""
    context: int | None = None
    """Tokens per window (64)."""
    steps: int | None = None
    """Steps of every training (300)."""
    warmup: int | None = None
    """Steps of warm-up (30)."""
    batch: Annotated[int | None, Parameter(name=["--batch", "--batch-size"])] = None
    """Windows per step (16)."""

    def given(self) -> dict[str, Any]:
        """The fields that were given."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class Choices:
    """Choices of the space, with commas between them; they take the place of what --space or the default has."""

    attention: _Words = None
    """Attention variants, e.g. softmax,scaled,sink-logit."""
    norm: _Words = None
    """Norms."""
    feed_forward: _Words = None
    """Feed-forward layers."""
    optimiser: Annotated[str | None, Parameter(name=["--optimiser", "--optimizer"], show_default=False)] = (
        None
    )
    """Optimisers, e.g. adamw,muon."""
    noise: _Words = None
    """Quantization noise in the forward, e.g. w16a16,w8a8,w4a4."""

    def given(self) -> dict[str, list[str]]:
        """Dotted names to the values that were given."""
        names = {"noise": "objective.quantization.scheme"}
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {names.get(k, k): [w.strip() for w in v.split(",")] for k, v in found.items() if v is not None}


BASE, CHOICES = Base(), Choices()


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """How it is searched."""

    recipe: str | None = None
    """Start from this recipe: a JSON file, the folder of a training, or a built-in model's name."""
    goals: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = ()
    """What is to be small: loss int8 int4 outlier, or schemes such as w6a6; loss, int4 and outlier by default."""
    space: str | None = None
    """JSON file of what may be chosen; attention, optimiser, learning rate, kurtosis, z-loss and noise by default."""
    trials: int = 16
    """How many recipes are trained; the same command with more goes on."""
    sampler: str = "tpe"
    """tpe (some dozens of trials), nsga2 (hundreds), random."""
    seed: int = 0
    """Of the search."""
    seeds: int = 1
    """Trainings per recipe, whose goals are averaged."""
    processes: int = 1
    """Trials at the same time."""
    keep: _Flag = False
    """Keep the trained models in the run."""
    out: str | None = None
    """Run directory; one under ./skerry-runs by default, the same for the same search."""
    json: _Flag = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""


ASKED = Asked()


def optimize(
    text: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    base: Base = BASE,
    choices: Choices = CHOICES,
    asked: Asked = ASKED,
) -> None:
    """Search the weights of the objective and the choices of the architecture for several goals at once, and draw the Pareto front.

    Parameters
    ----------
    text
        A text file or folder, a token file (.npy, .bin), or backcopy; the built-in corpus by default.
    base
        The recipe that every trial starts from.
    choices
        What may be chosen.
    asked
        How.
    """
    space = _space(asked.space, choices.given())
    with progress_of(asked) as progress:
        import skerry

        done = skerry.optimize(
            asked.recipe,
            asked.out,
            goals=asked.goals or None,
            space=space,
            trials=asked.trials,
            sampler=asked.sampler,
            seed=asked.seed,
            seeds=asked.seeds,
            processes=asked.processes,
            keep=asked.keep,
            progress=progress,
            **base.given(),
            **({} if text is None else {"text": text}),
        )
    if asked.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.pareto_terminal import pareto_terminal

    pareto_terminal(done.document, console(), figures=done.figures(done.run.path))


def _space(file: str | None, given: dict[str, list[str]]) -> dict[str, Any] | None:
    from skerry.redesign.optimize_space import DEFAULT, read_space_file

    if file is None and not given:
        return None
    return {**(DEFAULT if file is None else read_space_file(file)), **given}
