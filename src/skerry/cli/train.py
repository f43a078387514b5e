"""skerry train."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document, progress_of

_Several = Annotated[list[str] | None, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Changes:
    """Fields of the recipe; what is not given is as in --recipe, or at its default."""

    text: str | None = None
    """The same as the argument TEXT."""
    tokenizer: str | None = None
    """Folder or hub id of a tokenizer; one is trained on the text by default."""
    vocabulary: int | None = None
    """Tokens of the vocabulary (4096)."""
    context: int | None = None
    """Tokens per window (128)."""
    held_out: float | None = None
    """Share of the text, at its end, that is never trained on (0.05)."""
    layers: int | None = None
    """Blocks (4)."""
    width: int | None = None
    """Channels of the residual stream (256)."""
    heads: int | None = None
    """Query heads (8)."""
    kv_heads: int | None = None
    """Key/value heads; as many as query heads by default."""
    inner: int | None = None
    """Channels of the feed-forward; 2 2/3 of the width by default."""
    attention: str | None = None
    """Attention variant (softmax); --list names all."""
    norm: str | None = None
    """Normalisation (rmsnorm)."""
    position: str | None = None
    """How positions are told (rope)."""
    feed_forward: str | None = None
    """Feed-forward layer (swiglu)."""
    tied: bool | None = None
    """Embedding and head are one matrix (yes)."""
    optimiser: Annotated[str | None, Parameter(name=["--optimiser", "--optimizer"])] = None
    """Optimiser (adamw); --list names all."""
    learning_rate: Annotated[float | None, Parameter(name=["--learning-rate", "--lr"])] = None
    """Peak learning rate (3e-3)."""
    schedule: str | None = None
    """cosine, wsd (warm-up, stable, decay) or constant (cosine)."""
    warmup: int | None = None
    """Steps of warm-up (100)."""
    final: float | None = None
    """Learning rate at the end, of the peak (0.1)."""
    decay_share: float | None = None
    """For wsd: share of the steps over which the rate falls (0.2)."""
    weight_decay: float | None = None
    """Of matrices (0.01)."""
    clip: float | None = None
    """Largest norm of the gradient; 0 for none (1)."""
    steps: int | None = None
    """Optimiser steps (1000)."""
    batch: Annotated[int | None, Parameter(name=["--batch", "--batch-size"])] = None
    """Windows per micro-batch, of all processes together (16)."""
    accumulation: int | None = None
    """Micro-batches per step (1)."""
    precision: str | None = None
    """bf16, fp32, or auto: bf16 where the hardware multiplies it (auto)."""
    compile: bool | None = None
    """Compile the model (no)."""
    seed: int | None = None
    """Of weights and windows (0)."""

    def given(self) -> dict[str, Any]:
        """The fields that were given."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """How it is trained and what is kept."""

    recipe: str | None = None
    """Start from this recipe: a JSON file, the folder of a training, or a built-in model's name."""
    attention_option: _Several = None
    """Option of the attention, NAME=VALUE; may be given several times."""
    norm_option: _Several = None
    """Option of the norm, NAME=VALUE."""
    optimiser_option: Annotated[
        list[str] | None, Parameter(name=["--optimiser-option", "--optimizer-option"], negative=())
    ] = None
    """Option of the optimiser, NAME=VALUE, e.g. betas=[0.9,0.95]."""
    objective: _Several = None
    """What is added to the loss, PART.NAME=VALUE, e.g. z_loss.weight=1e-4."""
    out: str | None = None
    """Folder of the training; one under ./skerry-runs by default, the same for the same recipe."""
    save_every: int | None = None
    """Keep the model every so many steps; the final one alone by default."""
    births_every: int | None = None
    """Look at outliers every so many steps; 25 by default, 0 for never."""
    dtype: str = "fp32"
    """Of the final model: fp32, bf16, fp16."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; chosen by default."""
    threads: int | None = None
    """CPU threads; chosen by model size and load by default."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.train`, but the fields of the recipe."""
        names = "out save_every births_every dtype device threads"
        return {name: getattr(self, name) for name in names.split()}

    def mappings(self) -> dict[str, Any]:
        """The fields of the recipe that are mappings, where they were given."""
        found = {
            "attention_options": self.attention_option,
            "norm_options": self.norm_option,
            "optimiser_options": self.optimiser_option,
            "objective": self.objective,
        }
        return {name: parse_settings(words) for name, words in found.items() if words}


CHANGES, ASKED = Changes(), Asked()


def train(
    text: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    changes: Changes = CHANGES,
    asked: Asked = ASKED,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    list: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Train a decoder; the same command goes on where it stopped, with the same losses bit for bit.

    Parameters
    ----------
    text
        A text file or folder, a token file (.npy, .bin), or backcopy; the built-in corpus by default.
    changes
        The recipe.
    asked
        How, and what is kept.
    dry_run
        Say what would be trained: sizes, tokens, memory, time.
    list
        Name the attention variants, norms, positions, feed-forwards, optimisers and schedules, and end.
    """
    if list:
        _list(asked)
        return
    recipe = {**changes.given(), **asked.mappings(), **({} if text is None else {"text": text})}
    with progress_of(asked) as progress:
        import skerry

        if dry_run:
            _plan(recipe, asked)
            return
        trained = skerry.train(asked.recipe, progress=progress, **recipe, **asked.options())
    _tell(trained, asked)


def parse_settings(words: list[str]) -> dict[str, Any]:
    """NAME=VALUE, or PART.NAME=VALUE, as nested mappings; values are JSON where they can be read as such, else words.

    Raises:
        UnknownOption: A word without `=`.
    """
    import json

    from skerry.errors import UnknownOption

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise UnknownOption(f"{word!r} is no setting; write NAME=VALUE, e.g. clip=0.03")
        place, *inner = name.split(".", 1)
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        if inner:
            before = found.setdefault(place, {})
            if not isinstance(before, dict):
                raise UnknownOption(f"{place} is given as {before!r} and by its parts; give one of them")
            before[inner[0]] = read
        else:
            found[place] = read
    return found


def _tell(trained: Any, asked: Asked) -> None:
    from skerry.redesign.train_devices import is_first_process
    from skerry.redesign.train_document import train_document

    if not is_first_process():
        return
    document = train_document(trained)
    if asked.json:
        ask_document(document)
        return
    from skerry.cli.console import console
    from skerry.report.train_terminal import train_terminal

    train_terminal(document, console())


def _plan(recipe: dict[str, Any], asked: Asked) -> None:
    from skerry.api_training import default_folder
    from skerry.redesign.train_plan import plan_training
    from skerry.redesign.train_recipes import find_recipe

    found = find_recipe(asked.recipe, recipe)
    folder = asked.out or default_folder(found)
    plan = plan_training(
        found, folder, device=asked.device, threads=asked.threads, save_every=asked.save_every
    )
    if asked.json:
        ask_document({"schema": 1, "recipe": found.plain(), "plan": plan})
        return
    from skerry.cli.console import console
    from skerry.report.train_terminal import plan_terminal

    plan_terminal(plan, found.plain(), console())


def _list(asked: Asked) -> None:
    from skerry.redesign.feed_forwards import feed_forwards
    from skerry.redesign.norms import norms
    from skerry.redesign.optimisers import optimisers
    from skerry.redesign.positions import positions
    from skerry.redesign.schedule import SCHEDULES
    from skerry.redesign.variants import variants

    known = {
        "attention": {name: v.source for name, v in variants().items()},
        "optimiser": {o.name: o.what for o in optimisers()},
        "norm": dict.fromkeys(norms(), ""),
        "position": dict.fromkeys(positions(), ""),
        "feed_forward": dict.fromkeys(feed_forwards(), ""),
        "schedule": dict.fromkeys(SCHEDULES, ""),
    }
    if asked.json:
        ask_document({"schema": 1, **known})
        return
    from skerry.cli.console import console
    from skerry.report.train_terminal import choices_view

    console().print(choices_view(known))
