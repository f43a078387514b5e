"""What linear maps read, row by row, with the input and the position that each row belongs to.

A linear map sees [row channel] and not [sample position channel]; an expert sees only the tokens that are routed to it. Which row is
which token is read from the forward itself: its shape, its attention mask, the length of its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skerry.anatomy.dense import Dense, change_inputs
from skerry.anatomy.experts import observe_experts
from skerry.anatomy.model import Anatomy


class Rows(NamedTuple):
    """Where rows stand.

    Attributes:
        sample: Number of the input in its batch.
        position: Position in the input, tokens of a cache before it counted.
        counts: False at padding.
    """

    sample: Int[Tensor, "row"]
    position: Int[Tensor, "row"]
    counts: Bool[Tensor, "row"]


# New values [row channel] of what a map reads, from the old ones and where its rows stand; it must not write into the old ones.
# Where the rows stand is None when the forward does not tell.
RowEdit = Callable[[Float[Tensor, "row channel"], "Rows | None"], Tensor]


class Frame:
    """The forward at hand: how many inputs of how many positions, and which of them count."""

    def __init__(self) -> None:
        self._shape: tuple[int, int] | None = None
        self._places: Rows | None = None
        # (layer, part, expert) -> flat token of each row of the expert at hand.
        self.routed: dict[tuple[int | None, str, int], Int[Tensor, "row"]] = {}

    def see(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the arguments of a forward of the model or of its trunk."""
        x = kwargs.get("input_ids", args[0] if args else None)
        x = kwargs.get("inputs_embeds") if x is None else x
        if not isinstance(x, Tensor) or x.dim() < 2:
            return
        shape = (int(x.shape[0]), int(x.shape[1]))
        length = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
        start = 0 if length is None else int(length())
        mask = kwargs.get("attention_mask")
        keep = torch.ones(shape, dtype=torch.bool, device=x.device)
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape == (shape[0], start + shape[1]):
            keep = mask[:, start:].bool()
        number = torch.arange(shape[0] * shape[1], device=x.device)
        self._shape = shape
        self._places = Rows(number // shape[1], start + number % shape[1], keep.reshape(-1))

    def places(self, num_rows: int, token: Int[Tensor, "row"] | None) -> Rows | None:
        """Where rows stand: all tokens in order, or the tokens named; None when there are more or fewer rows than tokens."""
        if self._places is None or self._shape is None:
            return None
        if token is not None:
            return Rows(*(x[token] for x in self._places))
        return self._places if num_rows == self._shape[0] * self._shape[1] else None


@contextmanager
def change_rows(anatomy: Anatomy, edits: Mapping[Dense, RowEdit]) -> Iterator[None]:
    """`skerry.anatomy.dense.change_inputs` for edits that ask where a row stands."""
    layers = {dense.layer for dense in edits if dense.expert is not None}
    with follow(anatomy) as frame, ExitStack() as stack:
        # Opened before the edits, so that each finds the tokens of its expert.
        routed = {layer: module for layer, module in anatomy.experts.items() if layer in layers}
        stack.enter_context(observe_experts(anatomy.model, routed, _note_tokens(frame)))
        stack.enter_context(change_inputs(anatomy, {d: _with_places(frame, d, e) for d, e in edits.items()}))
        yield


@contextmanager
def follow(anatomy: Anatomy) -> Iterator[Frame]:
    """The forward at hand, while open."""
    frame = Frame()
    with ExitStack() as stack:
        for module in _entrances(anatomy):
            stack.callback(module.register_forward_pre_hook(frame.see, with_kwargs=True).remove)
        yield frame


def _entrances(anatomy: Anatomy) -> list[nn.Module]:
    """Modules that are called with token ids: some heads call a part of the trunk and not the trunk."""
    get_decoder = getattr(anatomy.model, "get_decoder", None)
    found = [anatomy.model, anatomy.trunk, get_decoder() if get_decoder is not None else None]
    return list({id(m): m for m in found if isinstance(m, nn.Module)}.values())


def _note_tokens(frame: Frame) -> Callable[[int, str, int, Tensor, Tensor], None]:
    def note(layer: int, part: str, expert: int, _x: Tensor, token: Tensor) -> None:
        frame.routed[layer, part, expert] = token

    return note


def _with_places(frame: Frame, dense: Dense, edit: RowEdit) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        token = None
        if dense.expert is not None:
            part = "mlp.down.in" if "w.down" in dense.pieces else "mlp.in"
            token = frame.routed.get((dense.layer, part, dense.expert))
        return edit(x, frame.places(len(x), token))

    return change
