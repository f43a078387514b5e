"""What a block shows of its seams: the tensor that each map reads, and how to run a part of the block again with other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skerry.anatomy.blocks import instead
from skerry.anatomy.dense import Dense, watch_inputs
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.errors import BadText, EmptyBatch
from skerry.tame.threshold import Ranges

# Tokens of a piece: what is run at once. Small pieces stay in the cache, and a search can stop behind each.
PIECE_TOKENS = 256


def pieces(batches: Sequence[Batch], *, tokens: int = PIECE_TOKENS) -> list[Batch]:
    """The same inputs in batches of at most so many places, whole inputs each.

    Raises:
        EmptyBatch: There is no token to measure.
    """
    cut: list[Batch] = []
    for batch in batches:
        step = max(1, tokens // max(1, batch.input_ids.shape[1]))
        for i in range(0, len(batch.input_ids), step):
            part = slice(i, i + step)
            piece = Batch(batch.input_ids[part], batch.keep[part], batch.sample[part])
            if piece.num_tokens:
                cut.append(piece)
    if not cut:
        raise EmptyBatch("nothing to calibrate on: no batch has a token that counts")
    return cut


@dataclass
class View:
    """One piece before one block.

    Attributes:
        number: Of the piece.
        counts: False at padding, by row.
        inputs: What each map reads, [row channel].
        calls: What modules are called with, by identity.
        output: What the block gives.
        known: Whatever was computed of it.
    """

    number: int
    counts: Bool[Tensor, "row"]
    inputs: dict[Dense, Float[Tensor, "row channel"]] = field(default_factory=dict)
    calls: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=dict)
    output: Tensor | None = None
    known: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens that count."""
        return int(self.counts.sum())

    def counted(self, dense: Dense, x: Tensor) -> Tensor:
        """Rows of a map that count; an expert's rows are those that were routed to it."""
        return x if dense.is_routed or bool(self.counts.all()) else x[self.counts]

    @property
    def num_floats(self) -> int:
        """Numbers held."""
        held = {x.data_ptr(): x.numel() for x in self.inputs.values()}
        return sum(held.values())


@torch.no_grad()
def view(
    walk: Walk,
    batches: Sequence[Batch],
    number: int,
    maps: Sequence[Dense],
    modules: Sequence[nn.Module] = (),
) -> View:
    """Run one piece through the block at hand and keep what its maps read.

    Args:
        walk: Stands before the block.
        batches: The pieces that it walks.
        number: Of the piece.
        maps: The maps.
        modules: Modules whose calls are kept, to be made again.

    Raises:
        BadText: A number is not finite; input and layer are named.
    """
    batch = batches[number]
    seen = View(number, batch.keep.reshape(-1).to(walk.hidden[number].device))
    _check(walk.hidden[number], batch, f"before block {walk.layer}")
    seen.calls = {id(m): [] for m in modules}

    def show(dense: Dense, x: Tensor) -> None:
        seen.inputs[dense] = x if dense not in seen.inputs else torch.cat([seen.inputs[dense], x])

    def noting(module: nn.Module) -> Any:
        def note(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.calls[id(module)].append((args, kwargs))

        return note

    with ExitStack() as stack:
        stack.enter_context(watch_inputs(walk.anatomy, maps, show))
        for module in modules:
            handle = module.register_forward_pre_hook(noting(module), with_kwargs=True)
            stack.callback(handle.remove)
        seen.output = walk.run_one(number)
    _check(seen.output, batch, f"behind block {walk.layer}")
    return seen


def _check(x: Tensor, batch: Batch, where: str) -> None:
    good = x.isfinite().all(-1) | ~batch.keep.to(x.device)
    if bool(good.all()):
        return
    row, position = (int(i) for i in (~good).nonzero()[0])
    values = x[row, position]
    value = float(values[~values.isfinite()][0])
    raise BadText(
        f"calibration gives {value} {where}: input {int(batch.sample[row])} of the corpus, position {position}, token "
        f"{int(batch.input_ids[row, position])}. Nothing was changed; leave the input out, or load the model in float32 if it overflows"
    )


def ranges_of(seen: View, dense: Dense) -> Ranges | None:
    """Smallest and largest value of every channel that a map reads; None where it reads nothing."""
    x = seen.counted(dense, seen.inputs[dense]) if dense in seen.inputs else None
    if x is None or not len(x):
        return None
    low, high = x.aminmax(dim=0)
    return Ranges(low.double(), high.double())


class _Reached(Exception):
    """The tensor that was waited for; what follows need not be computed."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a block that can be run again with other outputs of its first maps, up to what its last map reads.

    Attributes:
        module: The smallest module that holds them all.
        maps: The first maps: q, k and v; gate and up.
        last: The map whose input is the result: o; down.
    """

    module: nn.Module
    maps: tuple[Dense, ...]
    last: Dense

    @torch.no_grad()
    def run(self, seen: View, outputs: dict[Dense, Float[Tensor, "row out"]]) -> Tensor | None:
        """What the last map reads when the first maps give these outputs, [row channel]; None where it is never called.

        Args:
            seen: The piece; it holds what the module was called with.
            outputs: Of every first map.
        """
        asked: set[str] = set()

        def giving(dense: Dense) -> Any:
            def give(x: Tensor, *_: Any, **__: Any) -> Tensor:
                asked.add(dense.name)
                return outputs[dense].reshape(*x.shape[:-1], -1).to(x.dtype)

            return give

        def reached(x: Tensor, *_: Any, **__: Any) -> Tensor:
            raise _Reached(x)

        args, kwargs = seen.calls[id(self.module)][0]
        with ExitStack() as stack:
            for dense in self.maps:
                stack.enter_context(instead(dense.module, giving(dense)))
            stack.enter_context(instead(self.last.module, reached))
            try:
                self.module(*args, **kwargs)
            except _Reached as at:
                if len(asked) == len(self.maps):
                    return at.x.reshape(-1, at.x.shape[-1])
        return None


def stage_of(model: nn.Module, maps: Sequence[Dense], last: Dense) -> Stage | None:
    """The stage from these maps to the last one; None where they are not modules in one module."""
    if last.is_routed or any(d.is_routed for d in maps):
        return None
    paths = [d.name.split(".") for d in (*maps, last)]
    common: list[str] = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        common.append(words[0])
    while common:
        module = model.get_submodule(".".join(common))
        if type(module).forward is not nn.Module.forward and not isinstance(module, nn.ModuleList):
            return Stage(module, tuple(maps), last)
        common.pop()
    return None
