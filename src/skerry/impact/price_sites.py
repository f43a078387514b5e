"""Quantization priced place by place: what the model loses when this input or this weight alone is rounded, and what outliers cause of it.

    change = damage(only this place rounded) - damage(untouched), paired over inputs, with its bootstrap interval
    share  = 1 - change(outlier channels, or tokens, of the place in full precision) / change

Channels and tokens that stay in full precision stretch no range, so the share counts both their own rounding and the coarse grid that they
force on the others. It is told only where the change's interval is above 0: a share of nothing says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerry.anatomy.dense import dense_maps
from skerry.anatomy.model import Anatomy
from skerry.causes.bootstrap import Interval, bootstrap
from skerry.causes.outcome import Reference
from skerry.corpus.batch import Batch
from skerry.impact.calibrate import calibrate
from skerry.impact.evaluate import HeadJudge
from skerry.impact.prefix import Prefix
from skerry.impact.quantize import Grid
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.impact.simulate import Simulation
from skerry.impact.site_parts import Outliers, SitePart, find_outliers, look, site_parts
from skerry.impact.site_reading import Reading, read_inputs, read_weights
from skerry.outliers.finding import Finding
from skerry.run import Progress, Silent

Row = dict[str, Any]


def price_sites(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    schemes: Sequence[Scheme],
    *,
    calibration: Sequence[Batch] | None = None,
    findings: Sequence[Finding] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of the table `quantization_sites`: every place under every scheme.

    Args:
        anatomy: The model; it is left as it was.
        batches: Inputs on which changes are measured.
        schemes: Of each, `inputs` are priced at what maps read and `weights` at weight parts.
        calibration: Inputs on which static ranges and the sizes of outliers are found; the same by default.
        findings: What the scan found; its outlier channels are those that are kept in full precision.
        seed: Of the bootstrap.
        progress: Told how far it is.

    Raises:
        UnknownOption: A group size that does not divide a width.
        BrokenModel: NaN, with input and map.
    """
    progress, calibration = progress or Silent(), batches if calibration is None else calibration
    for scheme in schemes:  # before any forward
        Simulation(scheme).check(anatomy, calibrated=False)
    parts = site_parts(anatomy)
    jobs = [(p, s) for p in parts for s in schemes if (s.weights if p.is_weight else s.inputs) is not None]
    num_layers = anatomy.dims.num_layers
    # A place in an early block costs more blocks to compute, so that is what the time left is told by.
    progress.start("pricing sites", sum(num_layers - part.layer for part, _ in jobs), "block")
    pricer = _Pricer(anatomy, batches, calibration, findings, seed)
    rows: list[Row] = []
    for layer in range(num_layers):
        for part, scheme in jobs:
            if part.layer == layer:
                rows += pricer.price(part, scheme)
                progress.advance(num_layers - layer)
        pricer.prefix.advance()
    progress.done()
    return rows


class _Pricer:
    def __init__(
        self,
        anatomy: Anatomy,
        batches: Sequence[Batch],
        calibration: Sequence[Batch],
        findings: Sequence[Finding],
        seed: int,
    ) -> None:
        self.anatomy, self.batches, self.calibration, self.seed = anatomy, list(batches), calibration, seed
        self.judge = HeadJudge(anatomy)
        self.damage = "distance" if self.judge.vocab is None else "loss"
        self.prefix = Prefix(anatomy, batches)
        self.weights = np.concatenate([self.judge.num_counted(b) for b in self.batches])
        self._clean = [self.judge.last(b, ()) for b in self.batches]
        self._before = self._damage(self._clean)
        maps = dense_maps(anatomy)
        self.outliers: Outliers = find_outliers(anatomy, maps, look(anatomy, calibration, maps), findings)
        self._grids: dict[tuple[Scheme, str], Mapping[str, Grid]] = {}

    def price(self, part: SitePart, scheme: Scheme) -> list[Row]:
        """The row of one place under one scheme; none where no calibration token reaches any of its maps."""
        part = part._replace(maps=tuple(d for d in part.maps if d.name in self.outliers.channels))
        if not part.maps:
            return []
        channels = {d.name: self.outliers.channels[d.name] for d in part.maps}
        row = self._weight(part, scheme, channels) if part.is_weight else self._input(part, scheme, channels)
        sources = {self.outliers.source[d.name] for d in part.maps}
        tensors = {(d.reads, d.expert): len(channels[d.name]) for d in part.maps}
        return [
            {
                "layer": part.layer,
                "site": part.site,
                "expert": None,
                "map": part.names,
                "scheme": str(scheme),
                "outcome": self.damage,
                **row,
                "num_channels": sum(tensors.values()),
                "channels_from": "findings" if "findings" in sources else "range",
                "num_samples": int(np.isfinite(self._before).sum()),
            }
        ]

    def _input(self, part: SitePart, scheme: Scheme, channels: Mapping[str, Tensor]) -> Row:
        alone = Scheme(inputs=scheme.inputs)
        names = frozenset(d.name for d in part.maps)
        above = {n: self.outliers.above[n] for n in names}
        assert alone.inputs is not None
        reading = Reading(alone.inputs, _one_reader_each(part, above))
        plain = Simulation(alone, grids=self._static(alone, "plain"), only=names)
        change = self._change(read_inputs(self.anatomy, plain, list(part.maps), reading))
        row: Row = {**reading.numbers(), **_interval(change), "num_tokens": reading.num_tokens}
        without = Simulation(alone, grids=self._static(alone, "channels"), only=names, keep_columns=channels)
        row |= _share(change, self._change(without.open(self.anatomy)), "channels")
        if reading.num_tokens:
            without = Simulation(alone, grids=self._static(alone, "tokens"), only=names, keep_above=above)
            row |= _share(change, self._change(without.open(self.anatomy)), "tokens")
        return row

    def _weight(self, part: SitePart, scheme: Scheme, channels: Mapping[str, Tensor]) -> Row:
        alone = Scheme(weights=scheme.weights)
        assert alone.weights is not None
        plain, reading = self._only_rows(part, Simulation(alone), alone.weights)
        change = self._change(plain.open(self.anatomy))
        without, _ = self._only_rows(part, Simulation(alone, keep_columns=channels), alone.weights)
        return {
            **reading.numbers(),
            **_interval(change),
            **_share(change, self._change(without.open(self.anatomy)), "channels"),
        }

    def _only_rows(
        self, part: SitePart, simulation: Simulation, spec: TensorSpec
    ) -> tuple[Simulation, Reading]:
        """A simulation with the rows of a weight part rounded and the other rows of the same maps as they are."""
        weights: dict[str, Tensor] = {}
        read = []
        for dense in part.maps:
            rounded = simulation.rounded_weight(dense)
            assert rounded is not None
            rows = dense.rows(part.site).to(rounded.device)
            new = dense.weight.clone()
            new[rows] = rounded[rows]
            weights[dense.name] = new
            read.append((dense, dense.weight[rows], new[rows]))
        names = frozenset(weights)
        return Simulation(Scheme(), weights=weights, only=names), read_weights(read, spec)

    def _static(self, scheme: Scheme, kept: str) -> Mapping[str, Grid]:
        """Static grids of all maps: of everything, without the outlier channels, or without the outlier tokens."""
        key = (scheme, kept)
        if key not in self._grids:
            self._grids[key] = calibrate(
                self.anatomy,
                self.calibration,
                scheme,
                maps=[d for d in dense_maps(self.anatomy) if d.name in self.outliers.channels],
                keep_columns=self.outliers.channels if kept == "channels" else None,
                keep_above=self.outliers.above if kept == "tokens" else None,
            )
        return self._grids[key]

    def _change(self, context: AbstractContextManager[Any]) -> Interval:
        with context:
            last = [self.prefix.last(number) for number in range(len(self.batches))]
        return bootstrap(self._damage(last) - self._before, self.weights, seed=self.seed)

    @torch.no_grad()
    def _damage(self, last: Sequence[Tensor]) -> np.ndarray:
        found = []
        for batch, new, clean in zip(self.batches, last, self._clean, strict=True):
            if self.damage == "loss":
                found.append(self.judge.reference(batch, new).outcome["loss"])
            else:
                found.append(self.judge.compare(batch, new, Reference(clean, {}))["distance"])
        return torch.cat(found).numpy()


def _one_reader_each(part: SitePart, above: Mapping[str, float]) -> dict[str, float]:
    """Sizes of outlier tokens of one map per tensor, so that a token that q, k and v read is counted once."""
    first = {(d.reads, d.expert): d.name for d in reversed(part.maps)}
    return {name: above[name] for name in first.values()}


def _interval(change: Interval) -> Row:
    return {"change": change.value, "ci_low": change.low, "ci_high": change.high}


def _share(change: Interval, without: Interval, what: str) -> Row:
    told = change.low > 0 and np.isfinite(without.value)
    return {
        f"change_without_{what}": without.value,
        f"share_{what}": 1 - without.value / change.value if told else None,
    }


__all__ = ["price_sites"]
