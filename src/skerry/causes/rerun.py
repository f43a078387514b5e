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

from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import Site
from skerry.causes.interventions import Intervention
from skerry.causes.outcome import Judge, Outcome, last_hidden
from skerry.corpus.batch import Batch


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
        self._blocks = _blocks(anatomy)
        self._kept: list[Any] = []
        with ExitStack() as stack:
            for block in self._blocks:
                handle = block.register_forward_hook(lambda _m, _a, out: self._kept.append(out))
                stack.callback(handle.remove)
            self.last: Float[Tensor, "sample position channel"] = last_hidden(self._forward())
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
            first_layer: First block to compute; the first that an intervention touches by default.
        """
        last = self.hidden(*interventions, watch=watch, first_layer=first_layer)
        return self.judge.compare(self.batch, last, self._reference)

    def hidden(
        self,
        *interventions: Intervention,
        watch: Sequence[AbstractContextManager[Any]] = (),
        first_layer: int | None = None,
    ) -> Float[Tensor, "sample position channel"]:
        """The last hidden states of such a run."""
        if first_layer is None:
            first_layer = min(
                (i.first_layer for i in interventions), default=0 if watch else len(self._blocks)
            )
        with ExitStack() as stack:
            for block, kept in zip(self._blocks[:first_layer], self._kept, strict=False):
                stack.enter_context(_returning(block, kept))
            for context in (*interventions, *watch):
                stack.enter_context(context)
            return last_hidden(self._forward())


def _blocks(anatomy: Anatomy) -> list[nn.Module]:
    """The blocks, when each one's output is all that the next receives from it; else none, and nothing is reused."""
    taps = [anatomy.taps.get(Site(layer, "resid.out")) for layer in range(anatomy.dims.num_layers)]
    whole = [t.module for t in taps if t is not None and t.tap.side == "output" and t.tap.split is None]
    return whole if len(whole) == len(set(map(id, whole))) == anatomy.dims.num_layers else []


@contextmanager
def _returning(block: nn.Module, output: Any) -> Iterator[None]:
    """While open the block returns this without computing; its hooks still run."""
    before, own = block.forward, "forward" in vars(block)
    block.forward = lambda *_args, **_kwargs: output  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            block.forward = before  # type: ignore[method-assign]
        else:
            del block.forward
