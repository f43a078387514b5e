"""How much of a sink's logit one constant direction explains: its component is taken from what the carrying keys read, nothing else.

    logit of a query = mean over carrying keys of l - mean over its other visible keys of l
    d = mean of attn.in at carrying tokens - c        c = mean of attn.in at other tokens        (of all inputs but this one)
    k' = k - W_k (d' . (x - c)) d' with d' = d / |d|: the key of a carrying token that along d is like the others
    share = 1 - sum over inputs of M(logit with k') / sum over inputs of M(logit)        M = mean square over queries

Squares, because a mean of logits would be explained by a mean of vectors however little the tokens have in common.
Only the difference to other tokens counts: what all keys have in common moves all logits of a query alike, and the softmax not at all.
Key norms, rotation, caps and biases follow after k' as the model does them. Three copies of an input run at once: untouched, with k', and
with a change of the same length in a natural direction instead of d' (one in which the other tokens of a random input differ): `other`.
What attention writes in the copies is replaced by what it writes in the first, so every block sees the untouched stream.
Limit: one and the same attn.in at all carrying tokens gives 1, keys that cannot see the direction give 0.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.attention import AttentionView
from skerry.anatomy.change import Edit, change
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.spread_attention import Block, Keys, blocks, logits_shape, mean_where
from skerry.causes.spread_numbers import Row, mean_interval, ratio_interval, row
from skerry.causes.spread_read import shown_as
from skerry.causes.spread_text import Part, Text
from skerry.causes.spread_vectors import Vectors, difference_elsewhere, natural_directions

# Inputs of the extra forward, which runs three copies of each.
INPUTS = 32
COPIES = 3


class Logits(NamedTuple):
    """Of one block, float64 [input, head], NaN where not measured.

    Attributes:
        level: Logit of carrying keys above that of the others.
        whole: Its mean square over queries.
        without: The same when the keys are like others along the constant direction.
        without_other: The same after an equal change in a natural direction.
        mass: Attention given to carrying keys.
    """

    level: np.ndarray
    whole: np.ndarray
    without: np.ndarray
    without_other: np.ndarray
    mass: np.ndarray

    @classmethod
    def empty(cls, num_inputs: int, num_heads: int) -> Logits:
        """Nothing measured."""
        return cls(*(np.full((num_inputs, num_heads), np.nan) for _ in range(5)))


class LogitReader:
    """Runs some inputs three times at once, with keys that read less in two of them."""

    def __init__(self, anatomy: Anatomy, text: Text, vectors: Vectors, *, seed: int = 0) -> None:
        self.anatomy, self.text = anatomy, text
        self.found: dict[int, Logits] = {}
        self.layers = [layer for layer in vectors.at if self._restored(layer) and self._has_keys(layer)]
        self._differences = {
            layer: difference_elsewhere(vectors.at[layer].plain, vectors.other[layer].plain)
            for layer in self.layers
        }
        self._natural = {
            layer: natural_directions(vectors.other[layer].plain, seed + layer) for layer in self.layers
        }
        self._read: dict[int, Tensor] = {}
        self._part: Part = text.parts[0]
        self._shown = shown_as(anatomy, ("attn.in",))

    def _has_keys(self, layer: int) -> bool:
        return Site(layer, "attn.k") in self.anatomy.taps and Site(layer, "w.k") in self.anatomy.matrices

    def _restored(self, layer: int) -> Site | None:
        """Where the copies get the untouched stream back."""
        sites = (Site(layer, part) for part in ("attn.out", "resid.out"))
        return next((s for s in sites if s in self.anatomy.taps), None)

    def read(self) -> None:
        """The forwards, one per part of the text."""
        if not self.layers:
            return
        edits: dict[Site, Edit] = {}
        for layer in self.layers:
            edits[Site(layer, "attn.k")] = self._without(layer)
            site = self._restored(layer)
            assert site is not None
            edits[site] = _like_first
        for part in self.text.some(INPUTS):
            self._part, batch = part, part.batch
            ids, keep = batch.input_ids.repeat(COPIES, 1), batch.keep.repeat(COPIES, 1)
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode())
                # Opened first: it sees what the projections read before the keys change.
                stack.enter_context(watch(self.anatomy, ("attn.in",), on_activation=self._look))
                stack.enter_context(change(self.anatomy, edits))
                stack.enter_context(watch(self.anatomy, (), on_attention=self._attention))
                run(self.anatomy, ids, keep)
            self._read.clear()

    def _tokens(self, layer: int) -> Tensor:
        return self._part.alive[layer].flatten().nonzero()[:, 0]

    def _look(self, site: Site, x: Tensor, _rows: Tensor | None) -> None:
        for layer, _ in self._shown.get(site, ()):
            if layer in self._differences:
                self._read[layer] = x.index_select(0, self._tokens(layer).to(x.device))

    def _without(self, layer: int) -> Edit:
        def edit(k: Tensor, _rows: Tensor | None) -> Tensor:
            x, tokens = self._read.pop(layer), self._tokens(layer)
            inputs = self._part.inputs[tokens // self._part.batch.keep.shape[1]]
            weight = self.anatomy.weight(Site(layer, "w.k"))
            exact = weight.dtype if weight.dtype == torch.float64 else torch.float32
            weight, x = weight.to(exact), x.to(exact)
            constant, natural = self._differences[layer], self._natural[layer][inputs].to(x)
            d = constant.direction[inputs].to(x)
            length = ((x - constant.others[inputs].to(x)) * d).sum(1, keepdim=True)
            new, tokens = k.clone(), tokens.to(k.device)
            for copy, direction in enumerate((d, natural), 1):
                rows = tokens + copy * (len(k) // COPIES)
                new[rows] = (k[rows].to(exact) - (length * direction) @ weight.T).to(k)
            return new

        return edit

    def _attention(self, view: AttentionView) -> None:
        layer, part = view.layer, self._part
        num, num_heads, num_queries, num_keys = logits_shape(view)
        at, keep = part.alive[layer], part.batch.keep
        if layer not in self._differences or (num // COPIES, num_queries, num_keys) != (
            *keep.shape,
            keep.shape[1],
        ):
            return
        copies = [self._levels(view, copy) for copy in range(COPIES)]
        asks = (keep & ~at)[:, None].to(copies[0].carried.device)
        asks = asks & copies[0].carried.isfinite() & copies[0].others.isfinite()
        into = self.found.setdefault(layer, Logits.empty(self.text.num_inputs, num_heads))
        above = [c.carried - copies[0].others for c in copies]
        series = (above[0], *(x.square() for x in above), copies[0].mass)
        for name, x in zip(Logits._fields, series, strict=True):
            getattr(into, name)[part.inputs.numpy()] = mean_where(x, asks).cpu().numpy()

    def _levels(self, view: AttentionView, copy: int) -> _Levels:
        at = self._part.alive[view.layer]
        num, keys = len(at), Keys.of(at)
        shape = (num, *logits_shape(view)[1:3])
        device = (view.query if view.query is not None else view.logits).device  # type: ignore[union-attr]
        levels = _Levels(*(torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3)))
        for block in blocks(view, slice(copy * num, (copy + 1) * num)):
            samples = slice(block.samples.start - copy * num, block.samples.stop - copy * num)
            found = keys.logits(Block(samples, block.queries, block.logits))
            into = (samples, slice(None), block.queries)
            levels.carried[into] = _visible_mean(found).double()
            if not copy:
                levels.others[into] = _others_mean(block.logits, found).double()
                total = block.logits.logsumexp(-1)
                sink = view.sinks(block.samples, block.queries)
                if sink is not None:
                    total = torch.logaddexp(total, sink.to(total))
                levels.mass[into] = (found.logsumexp(-1) - total).exp().double()
        return levels

    def rows(self, *, seed: int) -> list[Row]:
        """Rows of the table: those heads, and blocks, whose carrying keys have a logit above that of the others."""
        found = []
        for layer, logits in sorted(self.found.items()):
            for head in (None, *range(logits.whole.shape[1])):
                level, whole, without, other = (_of_head(x, logits.mass, head) for x in logits[:4])
                if not mean_interval(level, seed=seed).low > 0:
                    continue
                share = ratio_interval(whole - without, whole, seed=seed)
                against = ratio_interval(whole - other, whole, seed=seed).value
                if math.isfinite(share.value):
                    num = int((np.isfinite(whole) & np.isfinite(without)).sum())
                    found.append(row("logit share", layer, head, share, against, num))
        return found


class _Levels(NamedTuple):
    """Mean logit of carrying keys, of other keys, and attention given to carrying keys."""

    carried: Float[Tensor, "sample head query"]
    others: Float[Tensor, "sample head query"]
    mass: Float[Tensor, "sample head query"]


def _like_first(x: Tensor, _rows: Tensor | None) -> Tensor:
    return x[: len(x) // COPIES].repeat(COPIES, 1)


def _visible_mean(x: Tensor) -> Tensor:
    return mean_where(x.masked_fill(x == -math.inf, 0.0), x != -math.inf)


def _others_mean(logits: Tensor, carried: Tensor) -> Tensor:
    """Mean of the visible logits that are not the carried ones; NaN without any."""
    seen, own = logits != -math.inf, carried != -math.inf
    total = torch.where(seen, logits, 0.0).sum(-1) - torch.where(own, carried, 0.0).sum(-1)
    return total / (seen.sum(-1) - own.sum(-1))


def _of_head(x: np.ndarray, mass: np.ndarray, head: int | None) -> np.ndarray:
    """[input] of one head; for the whole block the heads weighted by the attention that they give to carrying keys."""
    return x[:, head] if head is not None else (x * mass).sum(1)
