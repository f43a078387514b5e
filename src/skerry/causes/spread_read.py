"""One forward over the text that reads, at every block, what becomes of outliers: vectors, attention, values, reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from skerry.anatomy.attention import AttentionView
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.spread_attention import (
    given,
    logits_shape,
    mean_where,
    mix_of_one,
    reach,
    value_norm_ratio,
    with_whole,
)
from skerry.causes.spread_numbers import PerInput
from skerry.causes.spread_text import Part, Text
from skerry.causes.spread_vectors import Vectors, input_means

# Largest relative difference of the recomputed mix that is rounding (bfloat16) and not another computation.
ROUNDING = 0.02


@dataclass
class _Open:
    """What one block has shown so far in this forward.

    Attributes:
        brought: [token, head * channel] of the queries that are measured.
        measured: Those queries.
        one: Mix of one query, recomputed, and its flat token; None when that was compared before.
        mix: What the output projection reads, at those queries.
    """

    brought: Float[Tensor, "token channel"]
    measured: Bool[Tensor, "sample query"]
    one: tuple[Tensor, int] | None
    mix: Tensor | None = None


def shown_as(anatomy: Anatomy, parts: tuple[str, ...]) -> dict[Site, list[tuple[int, str]]]:
    """Site under which a watch shows a tensor, to the blocks and parts that it is: a post-norm block's `attn.in` is its input."""
    found: dict[Site, list[tuple[int, str]]] = {}
    for site in anatomy.taps:
        if site.part in parts and site.layer is not None:
            found.setdefault(anatomy.same_as.get(site, site), []).append((site.layer, site.part))
    return found


class Reader:
    """Reads all parts of a text."""

    def __init__(self, anatomy: Anatomy, text: Text) -> None:
        self.anatomy, self.text = anatomy, text
        self.numbers = PerInput(text.num_inputs)
        self.vectors = Vectors(text.num_inputs)
        self.has_broken_logits = False
        self.without_values: set[int] = set()
        self.other_shape: set[int] = set()
        self.not_the_mix: set[int] = set()
        self._compared: set[int] = set()
        self._open: dict[int, _Open] = {}
        self._part: Part = text.parts[0]
        self._shown = shown_as(anatomy, ("attn.in", "attn.mix", "attn.out"))

    def read(self) -> None:
        """One forward over the text."""
        parts = {"attn.in", "attn.mix", "attn.out"}
        for part in self.text.parts:
            self._part, batch = part, part.batch
            with (
                torch.inference_mode(),
                watch(self.anatomy, parts, on_activation=self._look, on_attention=self._attention),
            ):
                run(self.anatomy, batch.input_ids, batch.keep)
            self._open.clear()

    def _look(self, site: Site, x: Tensor, _rows: Tensor | None) -> None:
        for layer, part in self._shown.get(site, ()):
            if part == "attn.in":
                self.vectors.read(layer, x, self._part, self.numbers)
            elif part == "attn.mix":
                self._mix(layer, x)
            elif layer in self._open:
                self._out(layer, x)

    def _attention(self, view: AttentionView) -> None:
        layer, part = view.layer, self._part
        at, keep = part.alive[layer], part.batch.keep
        num_samples, num_heads, num_queries, num_keys = logits_shape(view)
        if (num_samples, num_queries) != tuple(keep.shape) or num_keys != num_queries:
            self.other_shape.add(layer)
            return
        inputs = part.inputs.numpy()
        if view.value is not None:
            ratio = value_norm_ratio(view.value, at, keep, num_heads)
            self.numbers.put("value norm ratio", layer, inputs, with_whole(ratio))
        found = given(view, at)
        queries = (keep & ~at)[:, None].to(found.mass.device) & found.sees
        self.has_broken_logits |= found.is_broken
        mass, uniform = (mean_where(x.double(), queries) for x in (found.mass, found.uniform))
        self.numbers.put("attention mass", layer, inputs, with_whole(mass), with_whole(uniform))
        if found.brought is None:
            self.without_values.add(layer)
        elif (measured := queries.any(1)).any():
            brought = found.brought.transpose(1, 2).flatten(2)[measured]
            self._open[layer] = _Open(brought, measured, self._one(view, measured))

    def _one(self, view: AttentionView, measured: Tensor) -> tuple[Tensor, int] | None:
        if view.layer in self._compared:
            return None
        self._compared.add(view.layer)
        sample, query = measured.nonzero()[-1].tolist()
        return mix_of_one(view, sample, query).flatten(), sample * measured.shape[1] + query

    def _mix(self, layer: int, x: Shaped[Tensor, "token channel"]) -> None:
        found = self._open.get(layer)
        if found is None:
            return
        if found.one is not None:
            mix, row = found.one
            true = x[row].to(mix)
            same = mix.shape == true.shape and (mix - true).norm() <= ROUNDING * true.norm()
            if not same:
                self.not_the_mix.add(layer)
        if layer not in self.not_the_mix:
            found.mix = x[found.measured.flatten()]

    def _out(self, layer: int, x: Shaped[Tensor, "token channel"]) -> None:
        found = self._open.pop(layer)
        weight = self._weight(layer)
        if found.mix is None or weight is None:
            return
        out = x[found.measured.flatten()]
        heads = self._heads(layer)
        sizes = reach(found.brought.to(weight), found.mix.to(weight), out.to(weight), weight, heads)
        measured = found.measured.cpu()
        means = [input_means(column.cpu().double(), measured).numpy() for column in sizes]
        self.numbers.put("reach", layer, self._part.inputs.numpy(), *means)

    def _heads(self, layer: int) -> int:
        return self.numbers.series[layer, "attention mass"].value.shape[1] - 1

    def _weight(self, layer: int) -> Tensor | None:
        """The output projection, float32 (float64 where the model is)."""
        site = Site(layer, "w.o")
        if site not in self.anatomy.matrices:
            return None
        weight = self.anatomy.weight(site)
        return weight if weight.dtype == torch.float64 else weight.float()
