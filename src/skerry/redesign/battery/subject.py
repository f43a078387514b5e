"""The model as the tasks see it: token ids in, logits out, whatever the architecture, the device and the size.

A forward reads as many inputs at once as keep its logits below a fixed size, so a large vocabulary costs time and not memory. Whether a
model is a decoder is tried and not looked up: logits of earlier tokens must not depend on a later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy.load import max_positions, vocab_size
from skerry.errors import NotPossible

# Numbers of the logits of one forward (64 MB in float32), and tokens of one forward.
LOGITS_AT_ONCE = 2**24
TOKENS_AT_ONCE = 8192
DEFAULT_LENGTH = 128
# An embedding of positions may hold a few rows beside those of the positions.
_SPARE_ROWS = 8
# Noise of two forwards of the same tokens, relative to the logits' spread: bf16 has 3 digits.
_CAUSAL_NOISE = 0.05


class Read(NamedTuple):
    """What one forward gave.

    Attributes:
        rows: Which inputs.
        logits: [sample position token], float32 or float64; of the last positions only where so asked.
    """

    rows: slice
    logits: Tensor


@dataclass(frozen=True)
class Subject:
    """A decoder under test; it must be in evaluation mode.

    Attributes:
        model: Gives `.logits` for `input_ids`.
        vocab: Tokens that it predicts.
        length: Tokens that it was trained on at once.
        is_limited: Whether it cannot read more than `length` tokens.
        device: Where it is.
        batch_size: Most inputs per forward; None for as many as fit.
        facts: What was assumed about it, in words.
    """

    model: nn.Module
    vocab: int
    length: int
    is_limited: bool
    device: torch.device
    batch_size: int | None = None
    facts: list[str] = field(default_factory=list)

    def rows_at_once(self, length: int, kept: int) -> int:
        """Inputs per forward."""
        most = min(LOGITS_AT_ONCE // max(1, kept * self.vocab), TOKENS_AT_ONCE // max(1, length))
        return max(1, min(most, self.batch_size or most))

    @torch.no_grad()
    def forward(self, ids: Int[Tensor, "sample position"], **options: Any) -> Any:
        """One forward as the model gives it; without a cache unless asked for."""
        return self.model(input_ids=ids.to(self.device), **{"use_cache": False, **options})

    def read(self, ids: Int[Tensor, "sample position"]) -> Iterator[Read]:
        """The logits of all inputs, some inputs at a time."""
        step = self.rows_at_once(ids.shape[1], ids.shape[1])
        for start in range(0, len(ids), step):
            rows = slice(start, min(start + step, len(ids)))
            yield Read(rows, whole(self.forward(ids[rows]).logits))


def whole(logits: Tensor) -> Tensor:
    """At least float32: half precision has too few digits for a logarithm of a sum over a vocabulary."""
    return logits if logits.dtype == torch.float64 else logits.float()


def subject_of(model: nn.Module, *, length: int | None = None, batch_size: int | None = None) -> Subject:
    """A model as a subject.

    Args:
        model: In evaluation mode.
        length: Tokens that it was trained on at once; what its configuration says by default.
        batch_size: Most inputs per forward.

    Raises:
        NotPossible: It is no decoder, or cannot read so many tokens.
    """
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    device = torch.device("cpu") if first is None else first.device
    vocab = _checked(model, device)
    known = max_positions(model)
    facts = []
    if length is None and known is None:
        facts.append(f"the model does not say how many tokens it was trained on; {DEFAULT_LENGTH} is assumed")
    chosen = length or known or DEFAULT_LENGTH
    rows = _position_rows(model, known or chosen)
    if rows is not None and chosen > rows:
        raise NotPossible(
            f"a training length of {chosen:,} tokens: {type(model).__name__} has {rows:,} positions; ask for at most that many"
        )
    is_limited = rows is not None and rows <= chosen
    return Subject(model, vocab, chosen, is_limited, device, batch_size, facts)


@torch.no_grad()
def _checked(model: nn.Module, device: torch.device) -> int:
    """Size of the vocabulary of a model that predicts the next token.

    Raises:
        NotPossible: It gives no logits, or later tokens reach earlier ones.
    """
    name = type(model).__name__
    size = vocab_size(model) or 8
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=device) % size
    logits = getattr(model(input_ids=ids, use_cache=False), "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise NotPossible(
            f"{name} gives no logits [sample position token]: the battery needs a decoder with its head"
        )
    a, b = whole(logits)[:, :3]
    spread = float(a.std()) if a.numel() > 1 else 0.0
    if float((a - b).abs().max()) > _CAUSAL_NOISE * max(spread, 1e-6):
        raise NotPossible(
            f"{name} sees later tokens: it is no decoder, so it does not predict the next token"
        )
    return int(logits.shape[-1])


def _position_rows(model: nn.Module, length: int) -> int | None:
    """Positions that a table in the model has room for; None where positions are computed.

    A table is an embedding, or a buffer of two dimensions or more, with as many rows as the model has positions; the vocabulary's own
    embedding is none.
    """
    get = getattr(model, "get_input_embeddings", None)
    try:
        words = get() if get is not None else None
    except NotImplementedError:
        words = None
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not words and _fits(module.num_embeddings, length):
            return length
    for buffer in model.buffers():
        if buffer.dim() >= 2 and buffer.is_floating_point() and _fits(buffer.shape[-2], length):
            return length
    return None


def _fits(rows: int, length: int) -> bool:
    return length <= rows <= length + _SPARE_ROWS
