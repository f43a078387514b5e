"""What a folded decoder's attention does on text, per token and head: the numbers that cheaper forms are fitted to and judged by.

out = (1 - p) y + p v0,   p = sigmoid(e - lse),   e = q . k' scale,   lse = log sum_j e^l_j,   y = softmax(l) v
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.attention import AttentionView, naive_logits
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.quiet import quiet
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.corpus.batch import Batch
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.run import Progress, Silent


class Heads(NamedTuple):
    """One layer's attention over some tokens, in at least float32.

    Attributes:
        layer: Block.
        x: What the projections read.
        e: Logit of the folded token.
        lse: Log of the sum over the other keys.
        y: Attention over the other tokens alone.
    """

    layer: int
    x: Float[Tensor, "token channel"]
    e: Float[Tensor, "token head"]
    lse: Float[Tensor, "token head"]
    y: Float[Tensor, "token head channel"]

    @property
    def p(self) -> Float[Tensor, "token head"]:
        """Share of the folded token."""
        return torch.sigmoid(self.e - self.lse)


@torch.no_grad()
def read_heads(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    show: Callable[[Heads], None],
    *,
    progress: Progress | None = None,
    stage: str = "reading attention",
) -> None:
    """Show every layer of every batch, tokens of padding left out.

    Args:
        anatomy: A folded decoder.
        batches: Inputs without their first token.
        show: Called once per batch and layer.
        progress: Told how far it is.
        stage: What it is told.
    """
    progress = progress or Silent()
    progress.start(stage, len(batches), "batch")
    read: dict[int, Tensor] = {}
    keep: list[Bool[Tensor, "sample position"]] = []

    def activation(site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if site.part == "attn.in" and site.layer is not None:
            read[site.layer] = x

    def attention(view: AttentionView) -> None:
        kept = keep[-1].reshape(-1).to(read[view.layer].device)
        show(heads_of(view, read.pop(view.layer), kept))

    with quiet(anatomy.model), watch(anatomy, ("attn.in",), on_activation=activation, on_attention=attention):
        for batch in batches:
            keep.append(batch.keep)
            run(anatomy, batch.input_ids, batch.keep)
            progress.advance()
    progress.done()


def heads_of(view: AttentionView, x: Float[Tensor, "token channel"], kept: Bool[Tensor, "token"]) -> Heads:
    """One layer's attention, flat over samples and positions."""
    assert view.query is not None and view.key is not None and view.value is not None
    assert view.sink_logits is not None, "a folded decoder has a sink in every layer"
    query, key, value, sink = view.query, view.key, view.value, view.sink_logits
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    logits = naive_logits(replace(view, query=query.to(wide), key=key.to(wide)))
    groups = view.num_heads // value.shape[1]
    y = logits.softmax(-1).nan_to_num(0.0) @ value.to(wide).repeat_interleave(groups, dim=1)
    return Heads(
        view.layer,
        x.to(wide)[kept],
        _flat(sink.to(wide), kept),
        _flat(logits.logsumexp(-1), kept),
        y.transpose(1, 2).flatten(0, 1)[kept],
    )


def _flat(x: Float[Tensor, "sample head query"], kept: Tensor) -> Float[Tensor, "token head"]:
    return x.transpose(1, 2).flatten(0, 1)[kept]


def variant_of(decoder: DecoderForCausalLM, layer: int) -> Any:
    """The attention variant of a block."""
    block: Any = decoder.model.layers[layer]
    return block.self_attn.variant
