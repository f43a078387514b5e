"""Inputs run again and again from one block on: the blocks before it return what they returned untouched.

With `n` blocks of equal cost, changing each in turn costs (n + 1) / (2 n) of as many forwards. Only what one block returned is kept, of all
inputs; `advance` moves on to the next block. A model whose blocks do not hand over all they know by their output is run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.blocks import blocks_of, instead
from skerry.anatomy.model import Anatomy, run
from skerry.causes.outcome import last_hidden
from skerry.corpus.batch import Batch


class Prefix:
    """Inputs and what a block of the untouched model gives for them.

    Args:
        anatomy: The model; it must be untouched whenever `advance` is called.
        batches: The inputs.

    Attributes:
        layer: First block that is computed.
    """

    def __init__(self, anatomy: Anatomy, batches: Sequence[Batch]) -> None:
        self.anatomy, self.batches = anatomy, list(batches)
        self.layer = 0
        self._blocks = blocks_of(anatomy)
        self._kept: list[Any] = [None] * len(self.batches)

    def last(self, number: int) -> Float[Tensor, "sample position channel"]:
        """Last hidden states of a batch, with whatever is open in the blocks from `layer` on."""
        batch = self.batches[number]
        with self._before(number):
            return last_hidden(run(self.anatomy, batch.input_ids, batch.keep))

    def advance(self) -> None:
        """Compute one more block, and begin behind it from now on."""
        if self.layer < len(self._blocks):
            self._kept = [self._next(number) for number in range(len(self.batches))]
        self.layer += 1

    def _next(self, number: int) -> Any:
        """What block `layer` returns; the blocks behind it hand that on without computing."""
        found: list[Any] = []
        block = self._blocks[self.layer]
        before = block.forward

        def computing(*args: Any, **kwargs: Any) -> Any:
            found.append(_copy(before(*args, **kwargs)))
            return _copy(found[0])

        batch = self.batches[number]
        with self._before(number), ExitStack() as stack:
            stack.enter_context(instead(block, computing))
            for later in self._blocks[self.layer + 1 :]:
                stack.enter_context(instead(later, lambda *_a, **_k: found[0]))
            run(self.anatomy, batch.input_ids, batch.keep)
        return found[0]

    @contextmanager
    def _before(self, number: int) -> Iterator[None]:
        with ExitStack() as stack:
            start = min(self.layer, len(self._blocks))
            for layer, block in enumerate(self._blocks[:start]):
                # The first block that computes may write into what it reads.
                kept = self._kept[number] if layer < start - 1 else _copy(self._kept[number])
                stack.enter_context(instead(block, _returning(kept)))
            yield


def _returning(output: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: output


def _copy(output: Any) -> Any:
    """A block's output in tensors of its own."""
    if isinstance(output, Tensor):
        return output.clone()
    return type(output)(map(_copy, output)) if type(output) in (tuple, list) else output
