"""All accumulators of one scan, fed by one forward per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from skerry.anatomy import Anatomy, AttentionView, Site, run, watch
from skerry.anatomy.sites import RESIDUAL
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, MergeMismatch
from skerry.measure.activation import ActivationStats
from skerry.measure.attention import AttentionStats
from skerry.measure.memory import give_back

# Where tokens, and not only channels, are told apart: what carries massive activations.
TOKEN_PARTS = (*RESIDUAL, "mlp.down.in", "mlp.out")


class Meter:
    """Statistics of every wanted site and attention of a model.

    `read` is the only thing that costs time; everything else is bookkeeping. Meters of the same model add up with `merge`, whatever
    batches each has read.
    """

    def __init__(
        self, anatomy: Anatomy, parts: Iterable[str] | None = None, *, attention: bool = True
    ) -> None:
        """Prepare to read; accumulators are made when their site first fires."""
        self.anatomy = anatomy
        self.parts = None if parts is None else sorted(set(parts))
        self.wants_attention = attention and bool(anatomy.attention)
        self.activations: dict[Site, ActivationStats] = {}
        self.attentions: dict[int, AttentionStats] = {}
        self.num_samples = 0
        self._batch: Batch | None = None

    @torch.inference_mode()
    def read(self, batch: Batch) -> None:
        """One forward; everything that it shows is measured.

        Raises:
            EmptyBatch: The batch keeps no token.
        """
        if not bool(batch.keep.any()):
            raise EmptyBatch("a batch keeps no token: every place is padding")
        if not self.activations:
            self._make_accumulators(batch)
        self._batch = batch
        try:
            with watch(
                self.anatomy,
                self.parts,
                on_activation=self._on_activation,
                on_attention=self._on_attention if self.wants_attention else None,
            ):
                run(self.anatomy, batch.input_ids, batch.keep)
        finally:
            self._batch = None
        self.num_samples += len(batch.sample)
        give_back()

    def _make_accumulators(self, batch: Batch) -> None:
        """Make them all before the first large tensors, see `memory`; experts that this glance does not reach are made later."""
        with watch(self.anatomy, self.parts, on_activation=self._meet):
            run(self.anatomy, batch.input_ids[:1, :8], batch.keep[:1, :8])

    def _meet(self, site: Site, x: Tensor, rows: Tensor | None) -> None:
        self._stats(site, x.shape[-1])

    def _stats(self, site: Site, num_channels: int) -> ActivationStats:
        stats = self.activations.get(site)
        if stats is None:
            stats = self.activations[site] = ActivationStats(num_channels, tokens=site.part in TOKEN_PARTS)
        return stats

    def _on_activation(self, site: Site, x: Tensor, rows: Tensor | None) -> None:
        assert self._batch is not None
        self._stats(site, x.shape[-1]).update(x, rows, self._batch)

    def _on_attention(self, view: AttentionView) -> None:
        assert self._batch is not None
        stats = self.attentions.get(view.layer)
        if stats is None:
            num_kv_heads = view.num_heads if view.value is None else view.value.shape[1]
            stats = self.attentions[view.layer] = AttentionStats(
                view.num_heads, num_kv_heads, self._batch.input_ids.shape[1]
            )
        stats.update(view, self._batch)

    def merge(self, other: Meter) -> None:
        """Add what another meter of the same model has read.

        Raises:
            MergeMismatch: The other meter reads other parts or another model.
        """
        if self.parts != other.parts or self.anatomy.dims != other.anatomy.dims:
            raise MergeMismatch(f"these meters read different things: {self.parts} against {other.parts}")
        for site, stats in other.activations.items():
            if site in self.activations:
                self.activations[site].merge(stats)
            else:
                self.activations[site] = ActivationStats.from_state(stats.state())
        for layer, attention in other.attentions.items():
            if layer in self.attentions:
                self.attentions[layer].merge(attention)
            else:
                self.attentions[layer] = AttentionStats.from_state(attention.state())
        self.num_samples += other.num_samples

    def state(self) -> dict[str, Tensor]:
        """Everything measured so far, flat, to be stored as safetensors."""
        flat: dict[str, Tensor] = {"num_samples": torch.tensor(self.num_samples)}
        for site, stats in self.activations.items():
            flat |= {f"activation/{site}/{k}": v for k, v in stats.state().items()}
        for layer, attention in self.attentions.items():
            flat |= {f"attention/{layer}/{k}": v for k, v in attention.state().items()}
        return flat

    @classmethod
    def from_state(
        cls,
        anatomy: Anatomy,
        state: Mapping[str, Tensor],
        parts: Iterable[str] | None = None,
        *,
        attention: bool = True,
    ) -> Meter:
        """A meter that goes on where `state` stopped."""
        meter = cls(anatomy, parts, attention=attention)
        meter.num_samples = int(state["num_samples"])
        for (kind, place), tensors in _grouped(state).items():
            if kind == "activation":
                meter.activations[Site.parse(place)] = ActivationStats.from_state(tensors)
            else:
                meter.attentions[int(place)] = AttentionStats.from_state(tensors)
        return meter

    def __repr__(self) -> str:
        return (
            f"<Meter: {len(self.activations)} sites and {len(self.attentions)} attentions over {self.num_samples} samples; "
            ".activations, .attentions>"
        )


def _grouped(state: Mapping[str, Tensor]) -> dict[tuple[str, str], dict[str, Tensor]]:
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if "/" in key:
            kind, place, name = key.split("/", 2)
            grouped.setdefault((kind, place), {})[name] = tensor
    return grouped
