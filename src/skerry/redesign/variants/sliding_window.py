"""Sliding window: query i sees the keys i - window < j <= i; with sinks also the first `sinks` tokens of the sequence.

Beltagy et al. 2020 (arXiv 2004.05150), Mistral 2023; the second is StreamingLLM's (Xiao et al. 2023, arXiv 2309.17453), trained with its window.
Without sinks, a query further than the window has no first token to dump its weight on.
Limit: a window as long as the sequence is softmax attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skerry.errors import UnknownOption
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class SlidingWindow(Variant):
    """The nearest keys only."""

    name = "sliding-window"
    source = "Beltagy et al. 2020"

    def __init__(self, config: DecoderConfig, layer: int, *, window: int | None = None) -> None:
        """A window of so many tokens, the query's own included; half the context by default."""
        super().__init__(config, layer)
        self.window, self.sinks = window or max(1, config.max_position_embeddings // 2), 0
        if self.window < 1:
            raise UnknownOption(
                f"attention {self.name!r}: a window of {window} tokens; it must be at least 1"
            )

    def mask_of(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
        """Bool [sample or 1, 1, query, key]; the mask as it came where the window holds all keys."""
        queries, keys = query.shape[2], key.shape[2]
        if keys <= self.window:
            return mask
        at = torch.arange(keys, device=query.device)
        distance = at[keys - queries :, None] - at
        if mask is None:
            mask = (distance >= 0)[None, None]
        # Padding in front of a sequence: its first tokens are the first that its last query sees.
        is_first = mask[:, :, -1:].cumsum(-1) <= self.sinks
        return mask & ((distance < self.window) | is_first)


class SlidingWindowSink(SlidingWindow):
    """The nearest keys and the first ones."""

    name = "sliding-window-sink"
    source = "Xiao et al. 2023, StreamingLLM"

    def __init__(
        self, config: DecoderConfig, layer: int, *, window: int | None = None, sinks: int = 4
    ) -> None:
        """A window and the first `sinks` tokens."""
        super().__init__(config, layer, window=window)
        if sinks < 1:
            raise UnknownOption(f"attention {self.name!r}: {sinks} sinks; it must be at least 1")
        self.sinks = sinks


VARIANTS = (SlidingWindow, SlidingWindowSink)
