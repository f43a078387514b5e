"""Prunes a model: which weights are removed, and the model without them while a context is open.

    magnitude          |w|, compared over one map
    magnitude-global   |w|, compared over all maps
    wanda              |w| ||x||, compared over one row
    owl                Wanda with a sparsity per block by its outlying scores
    sparsegpt          optimal brain surgeon, column by column, block by block through the blocks pruned before
    owl-sparsegpt      SparseGPT with OWL's sparsities
    random             by lot, compared over one row: the control

Only linear maps of blocks are pruned, experts and fused maps among them; embedding, head and routers never are. How many weights were
removed is counted in the masks, not taken from what was asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.dense import Dense, dense_maps, replace_weights
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, UnknownOption
from skerry.impact.owl import OUTLIER_FACTOR, SPREAD, owl_sparsities
from skerry.impact.pruning_scores import (
    Method,
    keep_above,
    keep_of_groups,
    keep_of_map,
    keep_of_rows,
    kth_smallest,
    magnitude,
    method_named,
    num_removed,
    parse_structure,
    wanda,
)
from skerry.impact.sparsegpt import BLOCK, DAMPING, fitting, sparsegpt
from skerry.measure.gram import (
    ColumnNorms,
    Gram,
    block_grams,
    block_norms,
    column_norms,
    input_of,
    start_walk,
)
from skerry.run.progress import Progress, Silent


class Chosen(NamedTuple):
    """What was decided about one map, seen before the next is.

    Attributes:
        dense: The map; it still holds its weight.
        mask: True where kept.
        scores: What the decision went by.
        sparsity: Asked of this map.
    """

    dense: Dense
    mask: Bool[Tensor, "row column"]
    scores: Float[Tensor, "row column"]
    sparsity: float


OnMap = Callable[[Chosen], None]


@dataclass(frozen=True)
class Calibration:
    """What pruning reads of the data, and how.

    Attributes:
        batches: Calibration data; not needed for magnitude.
        norms: Column norms of the untouched model by input (`measure.gram.column_norms`), to read the data once for many prunings.
        sequential: Wanda and OWL: norms of the model as it is pruned so far, as in their published code, and not of the untouched one.
        owl_factor: OWL's M.
        owl_spread: OWL's lambda.
        block: SparseGPT: columns whose mask is chosen together.
        damping: SparseGPT: share of the mean diagonal added to the Gram matrix.
        seed: Of the random control.
    """

    batches: Sequence[Batch] = ()
    norms: Mapping[Site, ColumnNorms] | None = None
    sequential: bool = False
    owl_factor: float = OUTLIER_FACTOR
    owl_spread: float = SPREAD
    block: int = BLOCK
    damping: float = DAMPING
    seed: int = 0


class _Masked(Mapping[Dense, Tensor]):
    """Weights with what is removed set to zero, made when asked for."""

    def __init__(self, masks: Mapping[Dense, Tensor]) -> None:
        self._masks = masks

    def __getitem__(self, dense: Dense) -> Tensor:
        return dense.weight.masked_fill(~self._masks[dense], 0.0)

    def __iter__(self) -> Iterator[Dense]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)


@dataclass(frozen=True)
class Pruning:
    """Which weights of a model are removed; `open()` removes them.

    Attributes:
        method: A name of `METHODS`.
        sparsity: Asked for.
        masks: Map to its mask, True where kept.
        weights: What is left of the maps; for methods that do not change it, the weight of the model where the mask is True.
        block_sparsities: OWL's, by block; empty where all blocks are alike.
    """

    method: str
    sparsity: float
    masks: Mapping[Dense, Tensor]
    weights: Mapping[Dense, Tensor]
    block_sparsities: Mapping[int, float]

    @property
    def num_weights(self) -> int:
        """Weights of all maps that were pruned."""
        return sum(m.numel() for m in self.masks.values())

    @property
    def reached(self) -> float:
        """Share of the weights that is removed, counted."""
        return 1 - sum(int(m.sum()) for m in self.masks.values()) / self.num_weights

    @contextmanager
    def open(self) -> Iterator[None]:
        """The model without these weights while open; they come back bit for bit."""
        with replace_weights(self.weights):
            yield

    def __repr__(self) -> str:
        return (
            f"<Pruning by {self.method}: {self.reached:.2%} of {self.num_weights:,} weights in {len(self.masks)} maps; "
            ".open() removes them>"
        )


@contextmanager
def prune(
    anatomy: Anatomy,
    method: str,
    sparsity: float,
    batches: Sequence[Batch] = (),
    *,
    structure: str | None = None,
    maps: Sequence[Dense] | None = None,
    sequential: bool = False,
) -> Iterator[Pruning]:
    """A model without its weights of lowest score while open; the weights come back bit for bit.

    Args:
        anatomy: The model.
        method: A name of `METHODS`.
        sparsity: Share removed.
        batches: Calibration data; none for magnitude.
        structure: n:m, e.g. `2:4`; it decides the sparsity.
        maps: The maps to prune; all by default.
        sequential: See `Calibration`.
    """
    calibration = Calibration(batches, sequential=sequential)
    found = find_pruning(anatomy, method, sparsity, calibration, structure=structure, maps=maps)
    with found.open():
        yield found


def pruned_weights(
    anatomy: Anatomy,
    method: str,
    sparsity: float,
    batches: Sequence[Batch] = (),
    *,
    structure: str | None = None,
    maps: Sequence[Dense] | None = None,
    sequential: bool = False,
) -> dict[Dense, Bool[Tensor, "row column"]]:
    """The masks of such a pruning, True where a weight is kept; arguments as `prune`."""
    calibration = Calibration(batches, sequential=sequential)
    return dict(find_pruning(anatomy, method, sparsity, calibration, structure=structure, maps=maps).masks)


def find_pruning(
    anatomy: Anatomy,
    method: str,
    sparsity: float,
    calibration: Calibration | None = None,
    *,
    structure: str | None = None,
    maps: Sequence[Dense] | None = None,
    on_map: OnMap | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """Decide what is removed; the model is as before afterwards.

    Args:
        anatomy: The model.
        method: A name of `METHODS`.
        sparsity: Share removed, from 0 to below 1.
        calibration: Data and settings; not needed for magnitude.
        structure: n:m, e.g. `2:4`; then the sparsity must be the one that it gives.
        maps: The maps to prune; all by default.
        on_map: Told about every map as it is decided.
        progress: Told about every block.

    Raises:
        UnknownOption: An unknown method, a sparsity out of range or against the structure, OWL with a structure, the head among the maps.
        EmptyBatch: A method that reads data, and no data.
    """
    how, calibration = method_named(method), calibration or Calibration()
    maps = dense_maps(anatomy) if maps is None else maps
    _check(how, sparsity, structure, maps)
    needs_walk = how.score == "sparsegpt" or (how.score == "wanda" and calibration.sequential)
    needs_norms = how.score in ("wanda", "sparsegpt") and (how.by_block or not needs_walk)
    if (needs_walk and not calibration.batches) or (
        needs_norms and not (calibration.norms or calibration.batches)
    ):
        raise EmptyBatch(f"{method} scores weights by what they read, and there is no calibration data")
    norms = calibration.norms
    if needs_norms and norms is None:
        norms = column_norms(anatomy, calibration.batches, maps)
    by_block = {}
    if how.by_block:
        by_block = owl_sparsities(
            anatomy, maps, norms or {}, sparsity, factor=calibration.owl_factor, spread=calibration.owl_spread
        )
    job = _Job(
        anatomy, how, sparsity, structure, calibration, by_block, on_map or _nobody, progress or Silent()
    )
    if needs_walk:
        masks, weights = job.walk(maps)
        return Pruning(method, sparsity, masks, weights, by_block)
    masks = job.at_once(maps, norms or {})
    return Pruning(method, sparsity, masks, _Masked(masks), by_block)


def _nobody(_chosen: Chosen) -> None:
    """Listens to nothing."""


def _check(how: Method, sparsity: float, structure: str | None, maps: Sequence[Dense]) -> None:
    if not 0 <= sparsity < 1:
        raise UnknownOption(
            f"sparsity {sparsity:g} is not from 0 to below 1; 0.5 removes half of the weights"
        )
    if outside := [d.name for d in maps if d.layer is None]:
        raise UnknownOption(f"{outside[0]} lies outside the blocks: head and embedding are never pruned")
    if structure is not None:
        kept, of = parse_structure(structure)
        if abs(sparsity - (1 - kept / of)) > 1e-9:
            raise UnknownOption(
                f"structure {structure} removes {1 - kept / of:g} of the weights, not {sparsity:g}; ask for that sparsity"
            )
        if how.by_block:
            raise UnknownOption(
                f"OWL gives blocks different sparsities, and {structure} gives all the same; use wanda or sparsegpt"
            )
        for dense in maps:
            fitting(structure, dense.weight.shape[1])


@dataclass(frozen=True)
class _Job:
    """One pruning while it is decided."""

    anatomy: Anatomy
    how: Method
    sparsity: float
    structure: str | None
    calibration: Calibration
    by_block: Mapping[int, float]
    on_map: OnMap
    progress: Progress

    def share(self, dense: Dense) -> float:
        """The sparsity asked of one map."""
        return self.by_block.get(dense.layer, self.sparsity) if dense.layer is not None else self.sparsity

    def at_once(self, maps: Sequence[Dense], norms: Mapping[Site, ColumnNorms]) -> dict[Dense, Tensor]:
        """All maps of the untouched model."""
        if self.how.scope == "model" and self.structure is None:
            return self._over_the_model(maps)
        masks = {}
        for dense in maps:
            masks[dense] = self._mask(dense, self._scores(dense, norms))
        return masks

    def _scores(self, dense: Dense, norms: Mapping[Site, ColumnNorms]) -> Tensor:
        if self.how.score == "wanda":
            return wanda(dense.weight, norms[input_of(self.anatomy, dense)].result().norms)
        if self.how.score == "magnitude":
            return magnitude(dense.weight)
        lot = torch.Generator().manual_seed(zlib.crc32(f"{self.calibration.seed} {dense.name}".encode()))
        return torch.rand(dense.weight.shape, generator=lot).to(dense.weight.device)

    def _mask(self, dense: Dense, scores: Tensor) -> Tensor:
        sparsity = self.share(dense)
        if self.structure is not None:
            mask = keep_of_groups(scores, *parse_structure(self.structure))
        elif self.how.scope == "row":
            mask = keep_of_rows(scores, sparsity)
        else:
            mask = keep_of_map(scores, sparsity)
        self.on_map(Chosen(dense, mask, scores, sparsity))
        return mask

    def _over_the_model(self, maps: Sequence[Dense]) -> dict[Dense, Tensor]:
        count = num_removed(self.sparsity, sum(d.weight.numel() for d in maps))
        threshold = kth_smallest(lambda: (magnitude(d.weight) for d in maps), count) if count else -1.0
        ties = count - sum(int((magnitude(d.weight) < threshold).sum()) for d in maps)
        masks = {}
        for dense in maps:
            scores = magnitude(dense.weight)
            masks[dense] = keep_above(scores, threshold, ties)
            ties = max(0, ties - int((scores == threshold).sum()))
            self.on_map(Chosen(dense, masks[dense], scores, self.sparsity))
        return masks

    def walk(self, maps: Sequence[Dense]) -> tuple[dict[Dense, Tensor], dict[Dense, Tensor]]:
        """Block by block: one block's inputs are gathered through the blocks pruned before, its maps pruned, then the next."""
        masks: dict[Dense, Tensor] = {}
        weights: dict[Dense, Tensor] = {}
        walk = start_walk(self.anatomy, self.calibration.batches, maps)
        last = max(d.layer for d in maps if d.layer is not None)
        self.progress.start("pruning", last + 1, "blocks")
        for layer in walk:
            members = [d for d in maps if d.layer == layer]
            new = self._block(walk, members, masks)
            weights |= new
            self.progress.advance()
            if layer == last:
                break
            walk.advance(walk.run(replace_weights(new)))
        self.progress.done()
        return masks, weights

    def _block(self, walk: Walk, members: Sequence[Dense], masks: dict[Dense, Tensor]) -> dict[Dense, Tensor]:
        if self.how.score == "sparsegpt":
            grams = block_grams(walk, members)
            return {d: self._sparse(d, grams[input_of(self.anatomy, d)], masks) for d in members}
        masks |= self.at_once(members, block_norms(walk, members))
        return {d: d.weight.masked_fill(~masks[d], 0.0) for d in members}

    def _sparse(self, dense: Dense, gram: Gram, masks: dict[Dense, Tensor]) -> Tensor:
        found = sparsegpt(
            dense.weight,
            gram.matrix,
            self.share(dense),
            structure=self.structure,
            block=self.calibration.block,
            damping=self.calibration.damping,
        )
        masks[dense] = found.mask
        self.on_map(Chosen(dense, found.mask, found.scores, self.share(dense)))
        return found.weight
