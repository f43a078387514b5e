"""What one sublayer writes into one channel, unit by unit: heads, neurons, experts.

An output projection is a sum over its inputs, so a sublayer's term is exactly

    term = gain (sum_k x_k W[c, k] + bias)

with x = attn.mix (one head's channels together are one unit) or mlp.down.in (each neuron is one), gain from `growth_block`.  With experts
the sublayer's output is sum_e r_e out_e; the router's weights r of a token are the least-squares solution of its mlp.out on the outputs
of its experts, which is exact as soon as these are independent, and needs no knowledge of how the router normalises.  The bias is what
the output has beyond the sum; it must be the same for all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.growth_block import ATTENTION, FEED_FORWARD, Expansion, precision

Rows = Mapping[Site, Float[Tensor, "row _"]]
# Rounding of a sum, relative to the sum of absolute values, as a multiple of the precision.
_ROUNDING = 4


@dataclass(frozen=True)
class Writer:
    """The inputs of one output projection; expert None for the only one.

    Attributes:
        expert: Number of the expert.
        x: Inputs of the projection, 0 where a token does not pass it.
        w: Row c of the projection.
        gain: Factor from what is written to the term, 0 where a token does not pass it.
        bias: Of the projection, for channel c.
        group: Inputs of one unit.
    """

    expert: int | None
    x: Float[Tensor, "row input"]
    w: Float[Tensor, "input"]
    gain: Float[Tensor, "row"]
    bias: float
    group: int

    def means(self) -> Float[Tensor, "unit"]:
        """Mean contribution of each unit over the rows."""
        each = self.gain @ self.x.double() / len(self.gain) * self.w
        return each.unflatten(0, (-1, self.group)).sum(1)

    def of(self, unit: int) -> Float[Tensor, "row"]:
        """Contribution of one unit, row by row."""
        here = slice(unit * self.group, (unit + 1) * self.group)
        return self.gain * (self.x[:, here].double() @ self.w[here])


@dataclass(frozen=True)
class Units:
    """The units of one sublayer.

    Attributes:
        level: neuron, head or expert.
        part: attn.out or mlp.out.
        term: What they and the bias sum to, row by row.
        means: Mean contribution of each unit.
        names: Expert and index of each unit.
        of: Contribution of one unit, row by row.
        bias: Contribution of the biases, row by row.
        notes: What does not add up.
    """

    level: str
    part: str
    term: Float[Tensor, "row"]
    means: Float[Tensor, "unit"]
    names: Sequence[tuple[int | None, int | None]]
    of: Callable[[int], Tensor]
    bias: Float[Tensor, "row"]
    notes: list[str] = field(default_factory=list)


def heads(anatomy: Anatomy, layer: int, channel: int, rows: Rows, expansion: Expansion) -> Units | None:
    """Units of attention; None where its output projection or its heads are unknown."""
    mix, weight, num = Site(layer, "attn.mix"), Site(layer, "w.o"), anatomy.dims.num_heads
    known = mix in rows and weight in anatomy.matrices and ATTENTION in expansion.gains
    if not known or not num or rows[mix].shape[1] % num:
        return None
    w = anatomy.weight(weight)[channel].cpu().double()
    writer = _writer(
        anatomy, None, rows[mix], w, rows[Site(layer, ATTENTION)][:, channel], expansion.gains[ATTENTION]
    )
    writer = Writer(None, writer.x, w, writer.gain, writer.bias, len(w) // num)
    return _units(anatomy, "head", ATTENTION, expansion.terms[ATTENTION], [writer])


def feed_forward(
    anatomy: Anatomy, layer: int, channel: int, rows: Rows, expansion: Expansion
) -> tuple[Units | None, Units | None]:
    """Neurons and, where there are some, experts of the feed-forward; None where they are unknown."""
    gain, out = expansion.gains.get(FEED_FORWARD), rows.get(Site(layer, FEED_FORWARD))
    if gain is None or out is None:
        return None, None
    term = expansion.terms[FEED_FORWARD]
    through: dict[int | None, Tensor] = {
        e: rows[s] for e in _experts(anatomy, layer) if (s := Site(layer, FEED_FORWARD, e)) in rows
    }
    experts = None
    if through:
        router = router_weights(out, through)
        experts = _expert_units(term, gain, router, {e: x[:, channel] for e, x in through.items()})
    else:
        through, router = {None: out}, {None: torch.ones_like(gain)}
    writers = []
    for expert, written in through.items():
        site, inputs = Site(layer, "w.down", expert), Site(layer, "mlp.down.in", expert)
        if site in anatomy.matrices and inputs in rows:
            w = anatomy.weight(site)[channel].cpu().double()
            writers.append(
                _writer(anatomy, expert, rows[inputs], w, written[:, channel], gain * router[expert])
            )
    neurons = _units(anatomy, "neuron", FEED_FORWARD, term, writers) if writers else None
    return neurons, experts


def _experts(anatomy: Anatomy, layer: int) -> list[int]:
    """Routed experts of a block, and the shared one behind them."""
    return sorted({s.expert for s in anatomy.matrices if s.layer == layer and s.expert is not None})


def router_weights(
    total: Float[Tensor, "row channel"], through: Mapping[int | None, Float[Tensor, "row channel"]]
) -> dict[int | None, Float[Tensor, "row"]]:
    """Weight that each token gives to each expert (0 where it does not pass it), from the sum and the summands.

    Args:
        total: What the feed-forward writes.
        through: Expert to what it writes; NaN where a token does not pass it.
    """
    experts = list(through)
    passes = torch.stack([x.isfinite().all(1) for x in through.values()], 1)
    weights = torch.zeros(passes.shape, dtype=torch.float64)
    for t in range(len(total)):
        active = passes[t].nonzero()[:, 0]
        if len(active):
            columns = torch.stack([through[experts[i]][t] for i in active.tolist()], 1).double()
            weights[t, active] = torch.linalg.lstsq(columns, total[t].double()[:, None]).solution[:, 0]
    return {e: weights[:, i] for i, e in enumerate(experts)}


def _writer(
    anatomy: Anatomy, expert: int | None, x: Tensor, w: Tensor, written: Tensor, gain: Tensor
) -> Writer:
    """A projection with its bias: what it writes beyond the sum, where that is more than rounding."""
    passes = x.isfinite().all(1) & written.isfinite()
    x = x.masked_fill(~passes[:, None], 0)
    bias = 0.0
    if bool(passes.any()):
        each = x[passes].double()
        beyond = float((written[passes].double() - each @ w).mean())
        size = float((each.abs() @ w.abs()).mean())
        bias = beyond if abs(beyond) > _ROUNDING * precision(anatomy) * size else 0.0
    return Writer(expert, x, w, gain * passes, bias, 1)


def _units(anatomy: Anatomy, level: str, part: str, term: Tensor, writers: Sequence[Writer]) -> Units:
    means = [writer.means() for writer in writers]
    places = [(writer, i) for writer, m in zip(writers, means, strict=True) for i in range(len(m))]
    together = torch.cat(means)
    bias = torch.stack([w.gain * w.bias for w in writers]).sum(0)
    left = float(term.mean() - together.sum() - bias.mean())
    size = float(term.abs().mean() + together.abs().sum())
    notes = []
    if abs(left) > max(1e-4, _ROUNDING * precision(anatomy)) * size:
        notes.append(
            f"{level}s do not add up to what {part} adds: {left:.3g} of {float(term.mean()):.3g} is in the rest"
        )
    return Units(
        level,
        part,
        term,
        together,
        [(writer.expert, i) for writer, i in places],
        lambda unit: places[unit][0].of(places[unit][1]),
        bias,
        notes,
    )


def _expert_units(
    term: Tensor, gain: Tensor, router: Mapping[int | None, Tensor], written: Mapping[int | None, Tensor]
) -> Units:
    each = torch.stack([gain * router[e] * written[e].double().nan_to_num() for e in router], 1)
    names = [(e, None) for e in router]
    return Units(
        "expert", FEED_FORWARD, term, each.mean(0), names, lambda i: each[:, i], torch.zeros_like(term)
    )
