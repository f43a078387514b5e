"""How much an intervention hurts: the loss and the change of the prediction, or, without a head, of the last hidden states.

A causal language model gives the next-token loss and the Kullback-Leibler divergence of its prediction from the untouched one, both
in nats per token and per input. A model without a head has no loss; there the distance of the last hidden states stands in:

    distance = mean over tokens and channels of (h - h_clean)^2 / variance of that channel

so that an outlier channel counts like any other channel. 0 is no change, 2 is what unrelated states of the same spread would give. The
variance is that of the untouched batch, with a floor of a millionth of the median channel's: a channel that never moves has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skerry.anatomy.model import Anatomy
from skerry.corpus.batch import Batch

# Logits of so many numbers at once, float32: 256 MB.
LOGITS_AT_ONCE = 2**26
# Share of the median channel's variance that any channel has at least: below it a float32 norm writes noise.
SMALLEST_VARIANCE = 1e-6
Outcome = Mapping[str, Float[Tensor, "sample"]]
Opener = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Reference:
    """What the untouched model gives on one batch.

    Attributes:
        last: Its last hidden states, after the final norm.
        outcome: Its own outcome: the loss, and 0 for the rest.
    """

    last: Float[Tensor, "sample position channel"]
    outcome: Outcome


class Judge:
    """Compares what a model gives with what it gives untouched.

    Args:
        anatomy: The model.

    Attributes:
        outcomes: Names of what is measured: ("loss", "kl") or ("distance",).
        note: What the reader must know, None with a loss.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        causal = type(anatomy.model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        head = (
            cast(Any, anatomy.model).get_output_embeddings()
            if causal and anatomy.model is not anatomy.trunk
            else None
        )
        # The number of logits of a token; None without a head that predicts the next token.
        self.vocab = None if head is None else int(next(head.parameters()).shape[0])
        # Some heads call a part of the base model and not the base model.
        decoder = cast(Any, anatomy.model).get_decoder() if head is not None else None
        self._trunks = {id(m): m for m in (anatomy.trunk, decoder) if isinstance(m, nn.Module)}.values()
        self.outcomes = ("loss", "kl") if self.vocab is not None else ("distance",)
        self.note = (
            None
            if self.vocab is not None
            else "no language-model head, so no loss: effects are distances of the last hidden states (1 is one standard deviation squared)"
        )

    @torch.no_grad()
    def reference(self, batch: Batch, last: Tensor) -> Reference:
        """The outcome of the untouched model, from its last hidden states."""
        zero = torch.zeros(len(batch.input_ids), dtype=torch.float64)
        if self.vocab is None:
            return Reference(last, {"distance": zero})
        return Reference(last, {"loss": self._against(batch, last, None, nullcontext)["loss"], "kl": zero})

    @torch.no_grad()
    def compare(
        self, batch: Batch, last: Tensor, reference: Reference, changed_head: Opener = nullcontext
    ) -> Outcome:
        """The outcome per input, float64 [sample]; NaN for an input without a token that counts.

        Args:
            batch: The inputs.
            last: The last hidden states under the intervention, [sample position channel].
            reference: The untouched model's.
            changed_head: Opens what the intervention does to the head itself, while the head reads `last`.
        """
        if self.vocab is None:
            return {"distance": _distance(batch, last, reference.last)}
        return self._against(batch, last, reference.last, changed_head)

    def _against(
        self, batch: Batch, last: Tensor, clean: Tensor | None, changed_head: Opener
    ) -> dict[str, Tensor]:
        counts = (batch.keep[:, 1:] & batch.keep[:, :-1]).to(last.device)
        targets = batch.input_ids[:, 1:].to(last.device)
        if not targets.shape[1]:  # one token each: nothing is predicted
            nothing = torch.full((len(last),), math.nan, dtype=torch.float64)
            return {"loss": nothing, "kl": nothing}
        size = max(1, LOGITS_AT_ONCE // max(1, last.shape[1] * (self.vocab or 1)))
        parts = [
            self._some(
                last[i : i + size],
                None if clean is None else clean[i : i + size],
                targets[i : i + size],
                changed_head,
            )
            for i in range(0, len(last), size)
        ]
        joined = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        return {name: _mean(x, counts) for name, x in joined.items()}

    def _some(
        self, last: Tensor, clean: Tensor | None, targets: Tensor, changed_head: Opener
    ) -> dict[str, Tensor]:
        with changed_head():
            log_p = self._log_probs(last[:, :-1])
        loss = -log_p.gather(-1, targets[..., None])[..., 0]
        if clean is None:
            return {"loss": loss, "kl": torch.zeros_like(loss)}
        log_q = self._log_probs(clean[:, :-1])
        # Never below 0 but for rounding.
        return {"loss": loss, "kl": (log_q.exp() * (log_q - log_p)).sum(-1).clamp_min(0.0)}

    def _log_probs(self, last: Tensor) -> Tensor:
        """The model's own code from the last hidden states on: whatever it does to its logits is done."""
        with ExitStack() as stack:
            for trunk in self._trunks:
                stack.enter_context(_in_place_of(trunk, last))
            logits = self.anatomy.model(input_ids=last.new_zeros(last.shape[:2], dtype=torch.int64)).logits
        return F.log_softmax(logits.float(), dim=-1)


class _LastHidden(tuple[Tensor]):
    """What a head reads of a trunk's output: the last hidden states, by name or as the first item; anything else is absent."""

    def __new__(cls, last: Tensor) -> _LastHidden:
        return super().__new__(cls, (last,))

    def __getattr__(self, name: str) -> Tensor | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


@contextmanager
def _in_place_of(trunk: nn.Module, last: Tensor) -> Iterator[None]:
    """While open the trunk returns these hidden states without running."""
    before, own = trunk.forward, "forward" in vars(trunk)
    trunk.forward = lambda *_args, **_kwargs: _LastHidden(last)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if own:
            trunk.forward = before
        else:
            del trunk.forward


def last_hidden(output: Any) -> Tensor:
    """The last hidden states [sample position channel] in what a trunk returned."""
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "last_hidden_state", None)
    return found if found is not None else output[0]


def _mean(x: Float[Tensor, "sample position"], counts: Tensor) -> Float[Tensor, "sample"]:
    # Not a product: what stands at padding may be no number.
    return (torch.where(counts, x.double(), 0.0).sum(-1) / counts.sum(-1)).cpu()


def _distance(batch: Batch, last: Tensor, clean: Tensor) -> Float[Tensor, "sample"]:
    keep = batch.keep.to(last.device)
    if batch.num_tokens < 2:  # no variance
        return torch.full((len(last),), math.nan, dtype=torch.float64)
    variance = clean[keep].double().var(dim=0)
    variance = variance.clamp_min(max(SMALLEST_VARIANCE * float(variance.median()), 1e-30))
    squared = ((last - clean).double().square() / variance).mean(-1)
    return _mean(squared, keep)
