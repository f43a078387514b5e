"""Calibration block by block: all batches stand before one block, go through it, and stand before the next.

A search that needs a block's activations, or a rounding that must see what earlier blocks became, walks. Memory is one hidden state per
token and whatever the caller keeps of one block; time is one forward, and one more where the caller runs each block again.

What a block is called with beside the hidden state (masks, positions, rotary tables) does not depend on earlier blocks, so it is recorded
in a forward whose blocks compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skerry.anatomy.blocks import blocks_of, instead
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.watch import trial_ids
from skerry.errors import BrokenModel, NotPossible


@runtime_checkable
class HasIds(Protocol):
    """A batch: token ids and which places count (the room of batches lies below this one)."""

    @property
    def input_ids(self) -> Int[Tensor, "sample position"]:
        """Token ids."""

    @property
    def keep(self) -> Bool[Tensor, "sample position"]:
        """False at padding."""


Call = tuple[tuple[Any, ...], dict[str, Any]]


class Walk:
    """All batches before one block.

    Args:
        anatomy: The model with its places.
        batches: Token ids; their hidden states are kept, one block's at a time.

    Attributes:
        layer: The block that they stand before.
        hidden: Hidden states of each batch, [sample position channel].
        keep: Which places of each batch are measured.

    Raises:
        NotPossible: A block is not one module, or needs more of its predecessors than their output.
    """

    @torch.no_grad()
    def __init__(self, anatomy: Anatomy, batches: Sequence[HasIds]) -> None:
        self.anatomy, self.layer = anatomy, 0
        self.blocks = blocks_of(anatomy)
        if not self.blocks:
            raise NotPossible(
                "the blocks of this model are not modules of their own, so it cannot be calibrated block by block"
            )
        self._tuples = _returns_tuples(anatomy, self.blocks)
        self.keep = [b.keep for b in batches]
        self._samples = [getattr(b, "sample", None) for b in batches]
        self._calls = [self._record(b.input_ids, b.keep) for b in batches]
        self.hidden: list[Float[Tensor, "_ _ channel"]] = [c[0][0][0] for c in self._calls]
        self._check()

    def _record(self, input_ids: Tensor, keep: Tensor | None = None) -> list[Call]:
        """What every block is called with, from a forward whose blocks hand on what they are given."""
        calls: list[Call] = []
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                stack.enter_context(instead(block, _recorder(calls, self._tuples[layer])))
            run(self.anatomy, input_ids, keep)
        if len(calls) != len(self.blocks):
            raise NotPossible(
                "the model runs a block more than once, so it cannot be calibrated block by block"
            )
        return [_with_positional(args, kwargs) for args, kwargs in calls]

    def _check(self) -> None:
        """A few tokens through all blocks must give what the model itself computes."""
        ids = trial_ids(self.anatomy.config, 8)
        whole: list[Tensor] = []
        handle = self.blocks[-1].register_forward_hook(lambda _m, _a, out: whole.append(_first(out).clone()))
        try:
            run(self.anatomy, ids)
        finally:
            handle.remove()
        calls = self._record(ids)
        hidden = calls[0][0][0]
        for block, (args, kwargs) in zip(self.blocks, calls, strict=True):
            hidden = _first(block(hidden.clone(), *args[1:], **kwargs))
        if not bool(torch.isfinite(whole[0]).all()):
            return  # the inputs themselves will show in which block, and be named
        error = float((hidden - whole[0]).abs().max() / whole[0].abs().max().clamp_min(1e-30))
        if not error <= 1e-3:
            raise NotPossible(
                f"a block of this model depends on more than its predecessor's output (relative error {error:.1e}), "
                "so it cannot be calibrated block by block"
            )

    def __iter__(self) -> Iterator[int]:
        """The blocks from where the batches stand; `advance` must be called for each."""
        while self.layer < len(self.blocks):
            before = self.layer
            yield before
            if self.layer == before:
                raise RuntimeError("advance() was not called")

    @torch.no_grad()
    def run(
        self, *contexts: AbstractContextManager[Any], each: Callable[[int, Tensor], None] | None = None
    ) -> list[Float[Tensor, "_ _ channel"]]:
        """What the block makes of every batch, with these contexts open; the batches stay where they are.

        Args:
            contexts: Opened around all batches.
            each: Called with the number of the batch and its output, after each batch.

        Raises:
            BrokenModel: A place that counts is not finite; input and layer are named.
        """
        outputs: list[Tensor] = []
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            for number in range(len(self.hidden)):
                out = self.run_one(number)
                self._check_finite(number, out)
                if each is not None:
                    each(number, out)
                outputs.append(out)
        return outputs

    @torch.no_grad()
    def run_one(self, number: int, hidden: Tensor | None = None) -> Float[Tensor, "sample position channel"]:
        """What the block makes of one batch, or of another hidden state in its place."""
        args, kwargs = self._calls[number][self.layer]
        # A block may write into what it reads.
        x = (self.hidden[number] if hidden is None else hidden).clone()
        return _first(self.blocks[self.layer](x, *args[1:], **kwargs))

    def _check_finite(self, number: int, out: Tensor) -> None:
        bad = ~torch.isfinite(out).all(-1) & self.keep[number].to(out.device)
        if not bool(bad.any()):
            return
        row = int(bad.any(-1).nonzero()[0, 0])
        samples = self._samples[number]
        sample = row if samples is None else int(samples[row])
        raise BrokenModel(
            f"layer {self.layer} gives NaN or infinity for calibration input {sample} (token {int(bad[row].nonzero()[0, 0])}); "
            "nothing can be calibrated on it: check the checkpoint, or its dtype (--dtype fp32)"
        )

    def advance(self, outputs: list[Float[Tensor, "_ _ channel"]]) -> None:
        """Put the batches before the next block, with these hidden states."""
        self.hidden = outputs
        self.layer += 1

    def __repr__(self) -> str:
        return f"<Walk of {len(self.hidden)} batches before block {self.layer} of {len(self.blocks)}; .run(), .advance(outputs)>"


def _first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _with_positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call with its hidden state as the first argument."""
    if args:
        return args, kwargs
    rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
    return (kwargs["hidden_states"],), rest


def _returns_tuples(anatomy: Anatomy, blocks: Sequence[nn.Module]) -> list[bool]:
    found: list[bool] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: found.append(not isinstance(out, Tensor)))
        for block in blocks
    ]
    try:
        run(anatomy, trial_ids(anatomy.config, 4))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _recorder(calls: list[Call], as_tuple: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if as_tuple else hidden

    return forward
