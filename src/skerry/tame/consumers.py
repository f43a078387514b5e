"""What reads a seam, and what rounding it costs there.

    q, k, v      attention-aware: the squared error of softmax(Q K^T / sqrt d) V, before the output projection
    gate, up     gated product: the squared error of act(gate) * up, before the down projection
    the rest     plain: the squared error of the map's own output; so too routed experts, each with the tokens that are routed to it

Wei et al. 2023 (arXiv 2304.09145), section 4.2. The first two run the model's own module, with the outputs of its first maps replaced, up to
the input of its last map: masks, rotary tables, positional biases, caps and norms on queries are the model's. A router reads a seam too and
is never rounded; it costs nothing.

A seam with several groups of readers (a parallel block) adds their losses, each as a share of the mean square of what it should give, so
that a loss of 0.01 means an error of one percent of the signal's energy in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skerry.anatomy.dense import Dense
from skerry.anatomy.model import Anatomy
from skerry.anatomy.seams import Seam
from skerry.impact.scheme import Scheme
from skerry.tame.capture import Stage, View, stage_of
from skerry.tame.rounded import Reading, Rounded, computing_dtype, reading_of, rounded
from skerry.tame.threshold import Ranges
from skerry.tame.transform import SeamChange

ATTENTION = {"w.q", "w.k", "w.v"}
GATED = {"w.gate", "w.up"}


def _never(_piece: int, _total: float) -> bool:
    return False


def is_router(dense: Dense) -> bool:
    """Whether a map chooses experts; those are never rounded."""
    return any(part.startswith("w.router") for part in dense.pieces)


@dataclass(frozen=True, eq=False)
class Group:
    """Readers whose cost is one number.

    Attributes:
        maps: The readers.
        stage: What is run again; None: each map's own output is compared.
        kind: `attention`, `gated` or `plain`.
    """

    maps: tuple[Dense, ...]
    stage: Stage | None
    kind: str

    def target(self, seen: View, dense: Dense) -> Tensor:
        """What the group should give; `dense` is the last map of a stage, or the map itself."""
        if self.stage is not None:
            return seen.counted(dense, seen.inputs[dense]).to(computing_dtype(dense))
        dtype = computing_dtype(dense)
        x = seen.counted(dense, seen.inputs[dense]).to(dtype)
        bias = None if dense.bias is None else dense.bias.to(dtype)
        return nn.functional.linear(x, dense.weight.to(dtype), bias)

    @property
    def compared(self) -> tuple[Dense, ...]:
        """The maps whose input (of a stage) or output is compared."""
        return self.maps if self.stage is None else (self.stage.last,)

    def error(self, seen: View, maps: Mapping[Dense, Rounded]) -> float:
        """Sum of squared errors over the tokens that count."""
        if self.stage is not None:
            given = self._outputs(seen, maps)
            mix = self.stage.run(seen, given)
            # The stage was proved when the group was made.
            assert mix is not None
            last = self.stage.last
            return _squares(seen.counted(last, mix) - self._known(seen, last))
        total = 0.0
        read: dict[int, Tensor] = {}
        for dense in self.maps:
            if dense not in seen.inputs:
                continue
            r, x = maps[dense], seen.inputs[dense]
            # Maps that read the same rows are given the same rounded ones.
            if x.data_ptr() not in read:
                read[x.data_ptr()] = r.reading(seen.counted(dense, x).to(r.weight.dtype))
            total += _squares(r(read[x.data_ptr()]) - self._known(seen, dense))
        return total

    def _outputs(self, seen: View, maps: Mapping[Dense, Rounded]) -> dict[Dense, Tensor]:
        out: dict[Dense, Tensor] = {}
        read: dict[int, Tensor] = {}
        for dense in self.maps:
            r = maps[dense]
            if id(r.reading) not in read:
                x = seen.inputs[dense].to(r.weight.dtype)
                read[id(r.reading)] = r.reading(x, seen.counts)
            out[dense] = r(read[id(r.reading)])
        return out

    def _known(self, seen: View, dense: Dense) -> Tensor:
        key = ("target", self.kind, dense)
        if key not in seen.known:
            seen.known[key] = self.target(seen, dense)
        return seen.known[key]

    def energy(self, seen: View) -> float:
        """Sum of squares of what the group should give."""
        return sum(_squares(self._known(seen, d)) for d in self.compared if d in seen.inputs)


def _squares(x: Tensor) -> float:
    return float(x.flatten().dot(x.flatten()))


class Consumer:
    """The readers of one seam.

    Args:
        anatomy: The model with its places.
        seam: The seam.
        maps: All linear maps of the seam's block.
        loss: `aware`, or `plain` for all readers.

    Attributes:
        groups: The readers, grouped by how their cost is computed.
        weights: 1 / mean square per token of what each group should give; set by `weigh`.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        seam: Seam,
        maps: Sequence[Dense],
        *,
        loss: str = "aware",
    ) -> None:
        self.seam = seam
        self.readers = [d for d in seam.readers if not is_router(d)]
        self.groups = self._grouped(anatomy, maps) if loss == "aware" else []
        taken = {d for g in self.groups for d in g.maps}
        if rest := tuple(d for d in self.readers if d not in taken):
            self.groups.append(Group(rest, None, "plain"))
        self.weights = [1.0] * len(self.groups)

    def _grouped(self, anatomy: Anatomy, maps: Sequence[Dense]) -> list[Group]:
        groups: list[Group] = []
        for kind, parts, last_part in (("attention", ATTENTION, "w.o"), ("gated", GATED, "w.down")):
            chosen = [d for d in self.readers if parts & set(d.pieces) and not d.is_routed]
            if kind == "gated":
                chosen = _with_gate(chosen)
            for own in _by_parent(chosen) if kind == "gated" else [chosen] if chosen else []:
                lasts = [d for d in maps if last_part in d.pieces and not d.is_routed]
                if kind == "gated":
                    lasts = [d for d in lasts if _parent(d) == _parent(own[0])]
                stage = stage_of(anatomy.model, own, lasts[0]) if len(lasts) == 1 else None
                if stage is not None:
                    groups.append(Group(tuple(own), stage, kind))
        return groups

    @property
    def modules(self) -> list[nn.Module]:
        """Modules whose calls a view must hold."""
        return [g.stage.module for g in self.groups if g.stage is not None]

    def prove(self, seen: View, scheme: Scheme, ranges: Ranges) -> None:
        """Take away stages that do not give, with nothing changed, what the model gave: their maps are compared plainly."""
        plain = Scheme()
        for i, group in enumerate(self.groups):
            if group.stage is None:
                continue
            maps = self.prepare(None, plain, ranges)
            right = len(seen.calls[id(group.stage.module)]) == 1 and group.stage.last in seen.inputs
            mix = group.stage.run(seen, group._outputs(seen, maps)) if right else None
            if mix is None or not _is_near(mix, seen.inputs[group.stage.last]):
                self.groups[i] = Group(group.maps, None, "plain")

    def weigh(self, views: Sequence[View]) -> None:
        """Set the weights of the groups from some pieces."""
        tokens = sum(v.num_tokens for v in views)
        sums = [sum(group) for group in zip(*(self.energies(v) for v in views), strict=True)]
        self.weights = [tokens / e if e > 0 else 0.0 for e in sums]

    def prepare(self, change: SeamChange | None, scheme: Scheme, ranges: Ranges) -> dict[Dense, Rounded]:
        """The readers as they will be after a change."""
        reading: Reading = reading_of(self.seam, change, scheme, ranges, computing_dtype(self.readers[0]))
        return {d: rounded(d, scheme, reading) for d in self.readers}

    def errors(self, seen: View, maps: Mapping[Dense, Rounded]) -> list[float]:
        """Sum of squared errors over the tokens of a piece, by group."""
        return [g.error(seen, maps) for g in self.groups]

    def energies(self, seen: View) -> list[float]:
        """Sum of squares of what the groups should give, by group."""
        return [g.energy(seen) for g in self.groups]

    def sums(
        self,
        views: Iterable[View],
        maps: Mapping[Dense, Rounded],
        *,
        stop: Callable[[int, float], bool] = _never,
    ) -> list[float]:
        """The weighted squared errors, summed from the first piece to each; fewer once `stop` says so.

        Args:
            views: Pieces of tokens.
            maps: The readers, see `prepare`.
            stop: Asked after every piece, with its number and the sum so far.
        """
        found: list[float] = []
        total = 0.0
        for i, seen in enumerate(views):
            total += sum(w * e for w, e in zip(self.weights, self.errors(seen, maps), strict=True))
            found.append(total if math.isfinite(total) else math.inf)
            if stop(i, found[-1]):
                break
        return found


def _parent(dense: Dense) -> str:
    return dense.name.rpartition(".")[0]


def _by_parent(maps: Sequence[Dense]) -> list[list[Dense]]:
    found: dict[str, list[Dense]] = {}
    for dense in maps:
        found.setdefault(_parent(dense), []).append(dense)
    return list(found.values())


def _with_gate(maps: Sequence[Dense]) -> list[Dense]:
    """Maps of feed-forwards that have a gate."""
    gated = {_parent(d) for d in maps if "w.gate" in d.pieces}
    return [d for d in maps if _parent(d) in gated]


def _is_near(new: Tensor, old: Tensor) -> bool:
    bound = 1e-3 if torch.finfo(old.dtype).bits >= 32 else 5e-2
    error = (new.double() - old.double()).norm() / old.double().norm().clamp_min(1e-30)
    return bool(error <= bound)
