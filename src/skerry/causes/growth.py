"""Where an outlier channel comes from: the exact additive decomposition of its change in one block.

Block level: attention, feed-forward and, where norms lie on the way, norm gain, norm bias and centre (`growth_block`); an outlier of the
embedding: token, position, type and norm (`growth_embedding`). Then what each neuron, head or expert writes (`growth_writers`), why the
largest neuron is large (`growth_factors`), and which unit explains most with least (`growth_named`).  Contributions are means over the
carrier's tokens; a share is a contribution divided by the whole change of the channel, with an interval over inputs (`growth_shares`).
Each level sums to what it splits: the block's rows to 1 (`unexplained` is the residue), neurons with bias and rest to the share of
mlp.out, heads with bias and rest to that of attn.out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.carrier import Carrier
from skerry.causes.gather import Gathered
from skerry.causes.growth_block import ATTENTION, FEED_FORWARD, UNEXPLAINED, Expansion, expand
from skerry.causes.growth_embedding import expand_embedding
from skerry.causes.growth_factors import factor_rows
from skerry.causes.growth_named import unit_rows, weight_rows
from skerry.causes.growth_shares import Shares
from skerry.causes.growth_writers import Units, feed_forward, heads

Event = Literal["birth", "exit"]
Table = list[dict[str, Any]]
# Units listed of each level; the others are together in the row `rest`.
LISTED = 16
# Neurons whose factors are listed: at most so many, each with at least this share of the change.
EXPLAINED, WORTH = 3, 0.1
# From which share on the feed-forward's weights are named, when no other part has more.
SOURCE = 0.5
# A change smaller than this part of the values themselves is rounding.
_NO_CHANGE = 1e-6
_PARTS = (
    *("resid.in", "resid.mid", "resid.out", "attn.mix", "attn.out", "attn.add"),
    *("mlp.in", "mlp.gate", "mlp.up", "mlp.down.in", "mlp.out", "mlp.add"),
)


def growth_sites(anatomy: Anatomy, layer: int | None) -> list[Site]:
    """What must be gathered to take a channel's change in this block apart; None: the embedding."""
    if layer is None:
        return [Site(0, "resid.in")]
    return [s for s in anatomy.activation_sites if s.layer == layer and s.part in _PARTS]


def decompose(
    anatomy: Anatomy, carrier: Carrier, event: Event, gathered: Gathered, *, seed: int = 0
) -> dict[str, Any]:
    """The terms of one outlier's birth or exit.

    Args:
        anatomy: The model.
        carrier: The outlier.
        event: `birth`: the change in the block where it is first there (or the embedding's value); `exit`: in the block that takes it away.
        gathered: Activations of `growth_sites` of that block at the outlier's tokens and at others.
        seed: Of the intervals.

    Returns:
        Rows of the tables growth, factors, growth_weights (only of a birth) and units, and notes: what could not be said, and why.
    """
    layer = carrier.birth_layer if event == "birth" else carrier.exit_layer
    if event == "exit" and layer is None:
        return _empty(f"outlier {carrier.number} stays to the end: no block takes it away")
    return _Growth(anatomy, carrier, event, layer, gathered, seed).tables()


def _empty(*notes: str) -> dict[str, Any]:
    return {"growth": [], "factors": [], "growth_weights": [], "units": [], "notes": list(notes)}


class _Growth:
    """One event of one outlier."""

    def __init__(
        self,
        anatomy: Anatomy,
        carrier: Carrier,
        event: Event,
        layer: int | None,
        gathered: Gathered,
        seed: int,
    ) -> None:
        self.anatomy, self.carrier, self.event, self.layer = anatomy, carrier, event, layer
        self.gathered, self.seed = _finite(gathered, layer), seed
        self.dropped = len(gathered.sample_at) - len(self.gathered.sample_at)
        self.who = f"outlier {carrier.number} (channel {carrier.channel}), {event}"

    def tables(self) -> dict[str, Any]:
        """All rows and notes of the event."""
        notes = [f"{self.who}: {self.dropped} tokens are not finite and left out"] if self.dropped else []
        layer, at = self.layer, self.gathered.at
        needed = (
            [Site(0, "resid.in")] if layer is None else [Site(layer, p) for p in ("resid.in", "resid.out")]
        )
        if not all(site in at for site in needed):
            return _empty(*notes, f"{self.who}: the residual stream there was not gathered")
        if not len(self.gathered.sample_at):
            return _empty(*notes, f"{self.who}: no token carries it")
        expansion = self.expansion()
        size = float(at[needed[0]][:, self.carrier.channel].double().abs().mean())
        if abs(float(expansion.change.mean())) <= _NO_CHANGE * size:
            return _empty(*notes, f"{self.who}: the channel does not change there")
        shares = Shares(expansion.change, self.gathered.sample_at, seed=self.seed)
        if not shares.is_stable and len(shares.inputs) > 1:
            # A share of what may be 0 is no number; the rule is the interval of the change itself.
            return _empty(*notes, f"{self.who}: the change there is not clearly different from 0")
        found = [] if layer is None else self.units(layer, expansion)
        notes += [f"{self.who}: {note}" for note in [*expansion.notes, *(n for u in found for n in u.notes)]]
        weights, more = self.weights(expansion, found)
        return {
            "growth": self.growth(shares, expansion, found),
            "factors": self.factors(expansion, found),
            "growth_weights": weights,
            "units": self.named(unit_rows(self.anatomy, layer, self.carrier.channel, expansion, found)),
            "notes": [*notes, *more],
        }

    def expansion(self) -> Expansion:
        """The block's terms, or the embedding's."""
        anatomy, channel, gathered = self.anatomy, self.carrier.channel, self.gathered
        if self.layer is not None:
            return expand(anatomy, self.layer, channel, gathered.at)
        h = gathered.at[Site(0, "resid.in")]
        return expand_embedding(anatomy, channel, h, gathered.ids_at, gathered.positions_at)

    def units(self, layer: int, expansion: Expansion) -> list[Units]:
        """Neurons, experts and heads, as far as the block has them."""
        place = self.anatomy, layer, self.carrier.channel, self.gathered.at, expansion
        neurons, experts = feed_forward(*place)
        return [units for units in (neurons, experts, heads(*place)) if units is not None]

    def named(self, rows: Table) -> Table:
        """The rows with carrier and event in front."""
        return [{"carrier": self.carrier.number, "event": self.event, **row} for row in rows]

    def growth(self, shares: Shares, expansion: Expansion, found: list[Units]) -> Table:
        """Rows of the table `growth`."""
        rows = []
        for level, part, expert, index, values in self.contributions(expansion, found):
            row = {"layer": self.layer, "level": level, "part": part, "expert": expert, "index": index}
            rows.append({**row, **shares.of(values)._asdict()})
        return self.named(rows)

    def contributions(
        self, expansion: Expansion, found: list[Units]
    ) -> Iterator[tuple[str, str, int | None, int | None, Tensor]]:
        """Level, part, expert, index and contribution by token."""
        for part, values in expansion.terms.items():
            yield "block", part, None, None, values
        for units in found:
            rest = units.term - units.bias
            for unit in units.means.abs().argsort(descending=True, stable=True)[:LISTED].tolist():
                values = units.of(unit)
                rest = rest - values
                yield units.level, units.part, *units.names[unit], values
            if bool(units.bias.any()):
                yield units.level, "bias", None, None, units.bias
            if len(units.means) > LISTED or float(rest.abs().mean()) > _NO_CHANGE * float(
                units.term.abs().mean()
            ):
                yield units.level, "rest", None, None, rest

    def factors(self, expansion: Expansion, found: list[Units]) -> Table:
        """Rows of the table `factors`: the neurons that write most of the change, where a neuron writes much of it."""
        neurons = next((u for u in found if u.level == "neuron"), None)
        if neurons is None or self.layer is None:
            return []
        shares = neurons.means / float(expansion.change.mean())
        is_source = expansion.part_shares[FEED_FORWARD] >= SOURCE
        rows: Table = []
        for rank, unit in enumerate(shares.argsort(descending=True, stable=True)[:EXPLAINED].tolist()):
            if float(shares[unit]) >= WORTH or (rank == 0 and is_source):
                expert, neuron = neurons.names[unit]
                assert neuron is not None
                rows += factor_rows(
                    self.anatomy,
                    self.layer,
                    self.carrier.channel,
                    expert,
                    neuron,
                    self.gathered.at,
                    self.gathered.other,
                )
        return self.named(rows)

    def weights(self, expansion: Expansion, found: list[Units]) -> tuple[Table, list[str]]:
        """Rows of the table `growth_weights`, and why there are none or not all."""
        if self.event != "birth":
            return [], []
        parts = {part: share for part, share in expansion.part_shares.items() if part != UNEXPLAINED}
        neurons = next((u for u in found if u.level == "neuron"), None)
        first = max(parts, key=lambda part: parts[part], default=None)
        share = parts.get(FEED_FORWARD, 0.0)
        if first is None:
            return [], []
        if share < SOURCE or first != FEED_FORWARD:
            besides = "" if self.layer is None else f", the feed-forward {share:.0%}"
            most = f"{_WORDS.get(first, first)} carries most of it ({parts[first]:.0%}{besides})"
            return [], [f"{self.who}: {most}, so no super weight is named"]
        if neurons is None or self.layer is None:
            return [], [
                f"{self.who}: the feed-forward carries {share:.0%}, but its neurons are no places of this model"
            ]
        total = float(expansion.change.mean())
        rows, notes = weight_rows(self.anatomy, self.layer, self.carrier.channel, total, neurons)
        return [{"carrier": self.carrier.number, **row} for row in rows], [f"{self.who}: {n}" for n in notes]


_WORDS = {
    ATTENTION: "attention",
    FEED_FORWARD: "the feed-forward",
    "w.embed": "the token embedding",
    "w.position": "the position embedding",
    "w.type": "the token-type embedding",
    "norm gain": "the gain of the norms",
    "norm bias": "the bias of the norms",
    "centre": "the mean that the norms subtract",
}


def _finite(gathered: Gathered, layer: int | None) -> Gathered:
    """Without rows whose residual stream or sublayers are not finite (NaN of an expert that a token does not pass is meant)."""
    here = [
        x for s, x in gathered.at.items() if s.expert is None and s.layer == (0 if layer is None else layer)
    ]
    good = torch.ones(len(gathered.sample_at), dtype=torch.bool)
    for x in here:
        good &= x.isfinite().all(1)
    if bool(good.all()):
        return gathered

    def kept(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[good]

    return replace(
        gathered,
        at={s: x[good] for s, x in gathered.at.items()},
        sample_at=gathered.sample_at[good],
        ids_at=kept(gathered.ids_at),
        positions_at=kept(gathered.positions_at),
    )
