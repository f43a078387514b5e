"""Why a neuron is large at an outlier's tokens: its product taken apart.

In a gated feed-forward a neuron's activation is act(g . x) (u . x) with x = mlp.in: the norm of x, its cosine with the gate row g and
with the up row u are measured at the outlier's tokens and at others.  Both aligned makes the product grow with the square of the norm
(the quadratic amplifier; An et al. 2025, section 4: the gate and up rows of the spiking neuron are unusually large).  act(gate) is
measured as product / up, so that no activation function need be known; where a model shifts or clamps up before multiplying (gpt-oss),
act(gate) contains that.

Log shares: with L(z) = mean log|z| at the outlier's tokens - mean log|z| at others, L(product) = L(act(gate)) + L(up) exactly;
log_share = L(factor) / L(product), null unless the product is larger at the outlier's tokens.  Tokens where the product is exactly 0
(a ReLU that is off) have no logarithm and are left out of both means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.growth_writers import Rows

Others = Mapping[Site, Float[Tensor, "row2 _"]]


def factor_rows(
    anatomy: Anatomy, layer: int, channel: int, expert: int | None, neuron: int, at: Rows, other: Others
) -> list[dict[str, Any]]:
    """Rows of the table `factors` without carrier and event, for one neuron."""
    here, there = (_Neuron(anatomy, layer, expert, neuron, rows) for rows in (at, other))
    shares = _log_shares(here, there)
    rows = []
    for name, x in here.values.items():
        alignment, alignment_other = here.cosines.get(name), there.cosines.get(name)
        rows.append(
            {
                "factor": name,
                "value": _mean(x),
                "other": _mean(there.values[name].abs()) if name in there.values else None,
                "alignment": None if alignment is None else _mean(alignment),
                "alignment_other": None if alignment_other is None else _root_mean_square(alignment_other),
                "log_share": shares.get(name),
            }
        )
    down = anatomy.weight(Site(layer, "w.down", expert))
    weight = {"value": float(down[channel, neuron]), "other": float(down.double().abs().mean())}
    rows.append({"factor": "weight", **weight})
    place = {"layer": layer, "expert": expert, "neuron": neuron}
    return [{**place, "alignment": None, "alignment_other": None, "log_share": None, **row} for row in rows]


class _Neuron:
    """What one neuron reads and computes, at those rows that pass it; float64."""

    def __init__(self, anatomy: Anatomy, layer: int, expert: int | None, neuron: int, rows: Rows) -> None:
        self.values: dict[str, Tensor] = {}
        self.cosines: dict[str, Tensor] = {}
        found = rows.get(Site(layer, "mlp.down.in", expert))
        if found is None:
            return
        passes = found[:, neuron].isfinite()
        self._read(rows.get(Site(layer, "mlp.in")), passes)
        for part in ("gate", "up"):
            x = rows.get(Site(layer, f"mlp.{part}", expert))
            if x is not None:
                self.values[part] = x[passes, neuron].double()
            weight = Site(layer, f"w.{part}", expert)
            if weight in anatomy.matrices and self.x is not None:
                row = anatomy.weight(weight)[neuron].double().cpu()
                self.cosines[part] = torch.nn.functional.cosine_similarity(self.x, row[None], dim=1)
        product = found[passes, neuron].double()
        if "gate" in self.values and "up" in self.values:
            up = self.values.pop("up")
            # Where up is 0 nothing says what the gate was.
            self.values["act(gate)"] = torch.where(up != 0, product / up, torch.nan)
            self.values["up"] = up
        self.values["product"] = product

    def _read(self, x: Tensor | None, passes: Tensor) -> None:
        self.x = None if x is None else x[passes].double()
        if self.x is not None:
            self.values["norm"] = self.x.norm(dim=1)


def _log_shares(here: _Neuron, there: _Neuron) -> dict[str, float]:
    """Factor to its share of the logarithm of how much larger the product is."""
    names = ("act(gate)", "up")
    logs = []
    for neuron in (here, there):
        product = neuron.values.get("product")
        if product is None or not all(name in neuron.values for name in names):
            return {}
        usable = product.isfinite() & (product != 0)
        if not bool(usable.any()):
            return {}
        logs.append([float(neuron.values[name][usable].abs().log().mean()) for name in names])
    gate, up = (a - b for a, b in zip(*logs, strict=True))
    return {"act(gate)": gate / (gate + up), "up": up / (gate + up)} if gate + up > 0 else {}


def _mean(x: Float[Tensor, "row"]) -> float | None:
    good = x[x.isfinite()]
    return float(good.mean()) if len(good) else None


def _root_mean_square(x: Float[Tensor, "row"]) -> float | None:
    return float(x.square().mean().sqrt()) if len(x) else None
