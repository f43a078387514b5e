"""Runs one batch again and again under interventions without computing again what they cannot have changed.

The untouched model runs once, and what each block returned is kept. A later run starts at the first block that an intervention
touches: the blocks before it return what they returned before. With `n` blocks of equal cost and a change at block `b`, a run costs
`(n - b) / n` of a forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from skerry.anatomy.blocks import blocks_of, instead
from skerry.anatomy.model import Anatomy, run
from skerry.causes.interventions import Intervention
from skerry.causes.outcome import Judge, Outcome, last_hidden
from skerry.corpus.batch import Batch
from skerry.errors import UnknownOption


class Rerun:
    """One batch, run untouched once, to be run again under interventions.

    Args:
        anatomy: The model with its places.
        batch: Token ids.
        judge: Compares the outcomes; a new one for this model by default.

    Attributes:
        last: Last hidden states of the untouched model, [sample position channel].
        clean: Its outcome per input.
    """

    def __init__(self, anatomy: Anatomy, batch: Batch, judge: Judge | None = None) -> None:
        self.anatomy, self.batch = anatomy, batch
        self.judge = Judge(anatomy) if judge is None else judge
        self._blocks = blocks_of(anatomy)
        kept: list[tuple[int, Any]] = []
        with ExitStack() as stack:
            for layer, block in enumerate(self._blocks):
                stack.enter_context(_recording(block, layer, kept))
            self.last: Float[Tensor, "sample position channel"] = last_hidden(self._forward())
        if [layer for layer, _ in kept] != list(range(len(self._blocks))):
            # A block that runs several times (ALBERT) gives several outputs.
            self._blocks, kept = [], []
        self._kept = [output for _, output in kept]
        self._reference = self.judge.reference(batch, self.last)

    @property
    def clean(self) -> Outcome:
        """Outcome of the untouched model, float64 [sample] each."""
        return self._reference.outcome

    def _forward(self) -> Any:
        return run(self.anatomy, self.batch.input_ids, self.batch.keep)

    def run(
        self,
        *interventions: Intervention,
        watch: Sequence[AbstractContextManager[Any]] = (),
        first_layer: int | None = None,
    ) -> Outcome:
        """Outcome per input, float64 [sample] each, with these interventions open.

        Args:
            interventions: Opened in this order.
            watch: Opened after them, for this run only: they see what the changed model computes. Sites inside blocks that are not
                computed again are not shown.
            first_layer: First block to compute; the first that an intervention touches by default, and never a later one.

        Raises:
            UnknownOption: Something that is no intervention.
        """
        last = self.hidden(*interventions, watch=watch, first_layer=first_layer)
        on_head = [i for i in interventions if i.changes_head]
        return self.judge.compare(self.batch, last, self._reference, lambda: _all(on_head))

    def hidden(
        self,
        *interventions: Intervention,
        watch: Sequence[AbstractContextManager[Any]] = (),
        first_layer: int | None = None,
    ) -> Float[Tensor, "sample position channel"]:
        """The last hidden states of such a run."""
        touched = first_of(interventions, 0 if watch else len(self._blocks))
        start = touched if first_layer is None else max(0, min(first_layer, touched))
        with ExitStack() as stack:
            for layer, block in enumerate(self._blocks[:start]):
                # The first block that computes may write into what it reads.
                kept = self._kept[layer] if layer < start - 1 else _copy(self._kept[layer])
                stack.enter_context(_returning(block, kept))
            for context in (*interventions, *watch):
                stack.enter_context(context)
            return last_hidden(self._forward())


def first_of(interventions: Sequence[Any], default: int) -> int:
    """First block that any of them touches.

    Raises:
        UnknownOption: One is no intervention.
    """
    for i in interventions:
        if not isinstance(i, Intervention):
            raise UnknownOption(
                f"{i!r} is no intervention, so it is unknown where it begins; give it as watch=[...] and first_layer=0"
            )
    return min((i.first_layer for i in interventions), default=default)


@contextmanager
def _all(contexts: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _recording(block: nn.Module, layer: int, kept: list[tuple[int, Any]]) -> AbstractContextManager[None]:
    """While open what the block returns is kept, as it is before any hook changes it."""
    before = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = before(*args, **kwargs)
        kept.append((layer, _copy(out)))
        return out

    return instead(block, forward)


def _returning(block: nn.Module, output: Any) -> AbstractContextManager[None]:
    """While open the block returns this without computing; its hooks still run."""
    return instead(block, lambda *_args, **_kwargs: output)


def _copy(output: Any) -> Any:
    """A block's output in tensors of its own."""
    if isinstance(output, Tensor):
        return output.clone()
    return type(output)(map(_copy, output)) if type(output) in (tuple, list) else output
