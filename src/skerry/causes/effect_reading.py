"""What is read under an intervention, in every block and per input.

    outlier            sign x value of the strongest outlier, mean over its tokens                                        resid.out
    sink mass          attention that tokens which are no sinks give to sinks, mean over them and over heads
    value norm ratio   mean |v| of sinks / mean |v| of other keys, mean over heads

The attention is what queries and keys give: where an intervention changes what heads do with it, the change does not show in it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from skerry.anatomy.attention import AttentionView
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.carrier import Carrier
from skerry.causes.effect_case import Case
from skerry.causes.sinks import Sinks, sink_mass
from skerry.causes.spread_attention import mean_where, value_norm_ratio
from skerry.causes.spread_read import shown_as

Key = tuple[str, int | None]


class Reading:
    """Reads one run of one case.

    Args:
        anatomy: The model.
        case: The inputs.
        carrier: The outlier that is read.
        sinks: The sinks whose attention is read; the heads of a block without any are not.

    Attributes:
        found: Outcome and block to its value per input, NaN where the input has none.
    """

    def __init__(self, anatomy: Anatomy, case: Case, carrier: Carrier, sinks: Sinks) -> None:
        self.anatomy, self.case, self.carrier, self.sinks = anatomy, case, carrier, sinks
        self.found: dict[Key, Float[Tensor, "sample"]] = {}
        self._shown = shown_as(anatomy, ("resid.out",))
        self._layers = set(sinks.layers)

    def open(self) -> AbstractContextManager[None]:
        """Reads while open."""
        return watch(self.anatomy, {"resid.out"}, on_activation=self._look, on_attention=self._attention)

    def _look(self, site: Site, x: Tensor, _rows: Tensor | None) -> None:
        number = self.carrier.number
        for layer, _ in self._shown.get(site, ()):
            at = self.case.tokens[number].to(x.device)
            value = self.carrier.sign * x[at, self.carrier.channel].detach().double().cpu()
            self.found["outlier", layer] = _mean_by(
                value, self.case.sample(number), len(self.case.batch.keep)
            )

    def _attention(self, view: AttentionView) -> None:
        if view.layer not in self._layers:
            return
        keep, sink = self.case.batch.keep, self.sinks.mask(view.layer, self.case.batch)
        mass = sink_mass(view, sink)
        if (mass.shape[0], mass.shape[2]) != tuple(keep.shape):
            return
        queries = (keep & ~sink)[:, None].to(mass.device)
        self.found["sink mass", view.layer] = mean_where(mass.double(), queries).mean(1).cpu()
        if view.value is not None and bool(sink.any()):
            ratio = value_norm_ratio(view.value, sink, keep, view.num_heads)
            self.found["value norm ratio", view.layer] = ratio.mean(1).cpu()


def _mean_by(
    value: Shaped[Tensor, "token"], sample: Shaped[Tensor, "token"], num_samples: int
) -> Float[Tensor, "sample"]:
    """Mean of each input's tokens; NaN for an input without one."""
    total = torch.zeros(num_samples, dtype=torch.float64).index_add_(0, sample, value)
    return total / torch.bincount(sample, minlength=num_samples)
