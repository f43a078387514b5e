"""What a monitor reads of a model: the scan's accumulators over a few sites, every layer's attention and the down projections.

Unlike the scan's meter it is made for a model in training: no inference tensor is left behind in a cache of the model (a forward of the
training could not differentiate through it), memory is not given back to the system (the next step needs it again), and tokens are
not told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from skerry.anatomy import Anatomy, AttentionView, Site, run, watch
from skerry.corpus import Batch
from skerry.errors import EmptyBatch
from skerry.measure import ActivationStats, AttentionStats, WeightResult, weight_stats

PARTS = ("resid.out", "mlp.down.in")
WEIGHT_PARTS = ("w.down",)


class BirthsReading:
    """Statistics of one state of a model; `read` may be called for any number of batches.

    Attributes:
        activations: Site to its statistics.
        attentions: Layer to its statistics.
    """

    def __init__(self, anatomy: Anatomy, parts: Sequence[str] = PARTS) -> None:
        """Start empty.

        Args:
            anatomy: The model with its places.
            parts: Activations to read.
        """
        self.anatomy, self.parts = anatomy, tuple(parts)
        self.activations: dict[Site, ActivationStats] = {}
        self.attentions: dict[int, AttentionStats] = {}

    @torch.no_grad()
    def read(self, batch: Batch) -> None:
        """One forward.

        Raises:
            EmptyBatch: The batch keeps no token.
        """
        if not bool(batch.keep.any()):
            raise EmptyBatch("a batch keeps no token: every place is padding")

        def activation(site: Site, x: Tensor, rows: Tensor | None) -> None:
            if site not in self.activations:
                self.activations[site] = ActivationStats(x.shape[-1], top_k=1)
            self.activations[site].update(x, rows, batch)

        def attention(view: AttentionView) -> None:
            if view.layer not in self.attentions:
                kv_heads = view.num_heads if view.value is None else view.value.shape[1]
                room = batch.input_ids.shape[1]
                self.attentions[view.layer] = AttentionStats(view.num_heads, kv_heads, room)
            self.attentions[view.layer].update(view, batch)

        with watch(self.anatomy, self.parts, on_activation=activation, on_attention=attention):
            run(self.anatomy, batch.input_ids, batch.keep)

    def sites(self) -> Iterable[tuple[Site, ActivationStats]]:
        """Every wanted site that was read; one that is the same tensor as another has the other's statistics."""
        known = {*self.anatomy.taps, *self.activations}
        for site in sorted(s for s in known if s.part in self.parts):
            stats = self.activations.get(self.anatomy.same_as.get(site, site))
            if stats is not None:
                yield site, stats

    def weights(self) -> Iterable[tuple[Site, WeightResult]]:
        """Every down projection as it is now."""
        for site in self.anatomy.weight_sites:
            if site.part in WEIGHT_PARTS:
                yield site, weight_stats(self.anatomy.weight(site), top_k=1).result()
