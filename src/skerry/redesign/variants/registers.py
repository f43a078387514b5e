"""Register tokens: learned tokens in front of every sequence, which attention reads and nobody is asked to predict.

Darcet et al. 2023 (arXiv 2309.16588); with one of them the learnable sink token of Xiao et al. 2023 (arXiv 2309.17453). The decoder owns their
embeddings (`registers`, N(0, 0.02)). They stand before every token, so under the causal rule they see each other only, and their keys and
values in a layer are the same for every input: they run through the blocks once, as a sequence of their own, and enter attention as

    out_i = (1 - p'_i) y_i + p'_i v'_i,   e_i = log sum_r e^l_ir,   p'_i = e^e_i / (e^e_i + sum_j e^l_ij),   v'_i = sum_r softmax_r(l_ir) v_r

which is attention over registers and tokens, on the kernel for sinks. So inputs, labels, logits and cache hold tokens and nothing else, and
observers see the tokens with the registers' share as that of a sink. Token t is rotated as position t + count.
It differs from `kv-bias` by keys and values that are made by the layers' own projections, from a stream with its own feed-forwards.
Limit: none of them is softmax attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.errors import UnknownOption
from skerry.redesign.attend import Sink, attend, in_one_type
from skerry.redesign.config import DecoderConfig
from skerry.redesign.variant import Variant


class Front(NamedTuple):
    """What the registers are to one layer.

    Attributes:
        key: [1 kv_head register channel], after positions.
        value: [1 kv_head register channel].
    """

    key: Tensor
    value: Tensor


@dataclass
class Behind:
    """Attention over tokens that have registers in front of them; `scale` and `weights` are softmax attention's."""

    front: Front
    scale: float | None = None
    weights: Callable[[Tensor], Tensor] | None = None

    def sink(self, query: Float[Tensor, "sample head query channel"]) -> Sink:
        """All registers as one sink, with a value of its own for every query."""
        wide = torch.promote_types(query.dtype, torch.float32)
        groups = query.shape[1] // self.front.key.shape[1]
        with torch.autocast(query.device.type, enabled=False):
            key, value = (x.to(wide).repeat_interleave(groups, dim=1) for x in self.front)
            scores = query.to(wide) @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            return Sink(scores.logsumexp(-1), scores.softmax(-1) @ value)

    def sink_logits(self, query: Tensor) -> Tensor:
        """Of all registers together."""
        return self.sink(query).logit

    def shown(self, query: Tensor) -> Tensor:
        """As they are."""
        return query

    def mask_of(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
        """As it came."""
        return mask

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
        """[sample head query channel]."""
        query, key, value = in_one_type(query, key, value)
        return attend(query, key, value, mask=mask, sink=self.sink(query))


class Registers(Variant):
    """Softmax attention behind some learned tokens."""

    name = "registers"
    source = "Darcet et al. 2023; Xiao et al. 2023"

    def __init__(self, config: DecoderConfig, layer: int, *, count: int = 4) -> None:
        """So many tokens."""
        super().__init__(config, layer)
        if count < 1:
            raise UnknownOption(f"attention {self.name!r}: a count of {count}; it must be at least 1")
        self.num_registers = count


VARIANTS = (Registers,)
