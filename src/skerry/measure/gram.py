"""Second moments of what linear maps read: the Gram matrix, its diagonal alone, of one block or, the diagonal, of all.

    G = sum_t x_t x_t^T          ||x_j||_2 = sqrt(G_jj)

over the kept tokens t, in the squared units of the activation. For a change D of a weight W [out in], tr(D G D^T) is the squared error
that the map's output makes on these tokens: GPTQ (Frantar et al. 2210.17323), SparseGPT (2301.00774) and Wanda (2306.11695) read
nothing else of the data. Limit: tokens that are the rows of an identity matrix give the identity.

A Gram of a wide map is as large as the map, so those of a whole model never exist at once: they are gathered of one block, through the
blocks before it as they are by then (`skerry.anatomy.walk`). Column norms are one number per channel, and may be gathered of all blocks in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skerry.anatomy.dense import Dense, watch_inputs
from skerry.anatomy.experts import observe_experts
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import Site
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.errors import SkerryError
from skerry.measure.accumulator import check_same

# Rows multiplied at once: float32 products of so few terms err by about 1e-6 of the largest, and are then summed in `dtype`.
ROWS_AT_ONCE = 4096
Show = Callable[[Site, Float[Tensor, "row column"]], None]


class GramResult(NamedTuple):
    """What a Gram holds.

    Attributes:
        matrix: sum x x^T.
        num_rows: Vectors read.
    """

    matrix: Float[Tensor, "column column"]
    num_rows: int


class Gram:
    """Mergeable sum of x x^T over rows.

    Args:
        num_columns: Width of x.
        dtype: Of the sums: float64, or float32 at half the memory.
    """

    def __init__(self, num_columns: int, *, dtype: torch.dtype = torch.float64) -> None:
        self.matrix = torch.zeros(num_columns, num_columns, dtype=dtype)
        self.num_rows = 0

    def update(self, x: Float[Tensor, "row column"]) -> None:
        """Read more rows. Products are float32, float64 for float64 rows."""
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        for piece in x.split(ROWS_AT_ONCE):
            rows = piece.to(wide)
            self.matrix += (rows.T @ rows).to(self.matrix)
        self.num_rows += len(x)

    def merge(self, other: Gram) -> None:
        """Take in what `other` has read.

        Raises:
            MergeMismatch: Another width or dtype.
        """
        check_same("Gram matrices", self._settings(), other._settings())
        self.matrix += other.matrix
        self.num_rows += other.num_rows

    def result(self) -> GramResult:
        """The sum and the number of rows in it."""
        return GramResult(self.matrix, self.num_rows)

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        return {"matrix": self.matrix.clone(), "num_rows": torch.tensor(self.num_rows)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Gram:
        """The Gram that wrote `state`."""
        made = cls(len(state["matrix"]), dtype=state["matrix"].dtype)
        made.matrix, made.num_rows = state["matrix"].clone(), int(state["num_rows"])
        return made

    def _settings(self) -> dict[str, object]:
        return {"number of columns": len(self.matrix), "dtype": self.matrix.dtype}


class ColumnNormsResult(NamedTuple):
    """What column norms hold.

    Attributes:
        norms: ||x_j||_2 over all rows, float64.
        num_rows: Vectors read.
    """

    norms: Float[Tensor, "column"]
    num_rows: int


class ColumnNorms:
    """Mergeable Euclidean norm of every column: the root of a Gram's diagonal, at the memory of one row.

    Args:
        num_columns: Width of x.
    """

    def __init__(self, num_columns: int) -> None:
        self.squares = torch.zeros(num_columns, dtype=torch.float64)
        self.num_rows = 0

    def update(self, x: Float[Tensor, "row column"]) -> None:
        """Read more rows."""
        for piece in x.split(ROWS_AT_ONCE):
            self.squares += piece.double().square().sum(0).cpu()
        self.num_rows += len(x)

    def merge(self, other: ColumnNorms) -> None:
        """Take in what `other` has read.

        Raises:
            MergeMismatch: Another width.
        """
        check_same(
            "column norms",
            {"number of columns": len(self.squares)},
            {"number of columns": len(other.squares)},
        )
        self.squares += other.squares
        self.num_rows += other.num_rows

    def result(self) -> ColumnNormsResult:
        """The norms and the number of rows in them."""
        return ColumnNormsResult(self.squares.sqrt(), self.num_rows)

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        return {"squares": self.squares.clone(), "num_rows": torch.tensor(self.num_rows)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ColumnNorms:
        """The norms that wrote `state`."""
        made = cls(len(state["squares"]))
        made.squares, made.num_rows = state["squares"].clone(), int(state["num_rows"])
        return made


def input_of(anatomy: Anatomy, dense: Dense) -> Site:
    """The name of what a map reads; maps of one name read the same rows. A routed expert's rows are its own, so its number is in it."""
    if dense.is_routed:
        return dense.reads._replace(expert=dense.expert)
    return anatomy.same_as.get(dense.reads, dense.reads)


def _widths(anatomy: Anatomy, maps: Iterable[Dense]) -> dict[Site, int]:
    return {input_of(anatomy, d): d.weight.shape[1] for d in maps}


@contextmanager
def watch_kept(
    anatomy: Anatomy, maps: Iterable[Dense], keep: Bool[Tensor, "sample position"], show: Show
) -> Iterator[None]:
    """Show what maps read while open, each input once, without padding.

    Args:
        anatomy: The model with its places.
        maps: The maps.
        keep: Of the batch that runs while open: False at padding.
        show: Called with the name of the input and its kept rows.
    """
    one_per_input = {input_of(anatomy, dense): dense for dense in maps}
    plain = {dense: site for site, dense in one_per_input.items() if not dense.is_routed}
    routed = {site for site, dense in one_per_input.items() if dense.is_routed}
    flat = keep.reshape(-1)

    def shown(dense: Dense, x: Tensor) -> None:
        show(plain[dense], x if bool(flat.all()) else x[flat.to(x.device)])

    def shown_expert(layer: int, part: str, expert: int, x: Tensor, rows: Int[Tensor, "row"]) -> None:
        if (site := Site(layer, part, expert)) in routed:
            show(site, x.detach()[flat.to(rows.device)[rows]])

    places = {layer: m for layer, m in anatomy.experts.items() if layer in {s.layer for s in routed}}
    with watch_inputs(anatomy, plain, shown), observe_experts(anatomy.model, places, shown_expert):
        yield


@torch.no_grad()
def column_norms(
    anatomy: Anatomy, batches: Iterable[Batch], maps: Sequence[Dense]
) -> dict[Site, ColumnNorms]:
    """Norms of all inputs of these maps, by the name of the input, in one pass over the data.

    Raises:
        SkerryError: An input that is NaN or infinite.
    """
    found = {site: ColumnNorms(width) for site, width in _widths(anatomy, maps).items()}
    for batch in batches:
        with watch_kept(anatomy, maps, batch.keep, lambda site, x: found[site].update(x)):
            run(anatomy, batch.input_ids, batch.keep)
    for site, norms in found.items():
        _check_finite(site, norms.squares)
    return found


def _check_finite(site: Site, squares: Tensor) -> None:
    if not bool(torch.isfinite(squares).all()):
        channels = (~torch.isfinite(squares)).nonzero()[:5, 0].tolist()
        raise SkerryError(
            f"{site} is NaN or infinite in channels {channels} of the calibration data; a score of it would be too. "
            "Load the model in float32 (dtype='float32'), or use other calibration data"
        )


def start_walk(anatomy: Anatomy, batches: Sequence[Batch], maps: Sequence[Dense]) -> Walk:
    """A walk before the first block, once the first batch has shown that what these maps read are numbers.

    Raises:
        SkerryError: An input that is NaN or infinite; a walk would only find that its blocks do not give what the model gives.
        NotPossible: Blocks that cannot run alone.
    """
    column_norms(anatomy, batches[:1], maps)
    return Walk(anatomy, batches)


def block_grams(walk: Walk, maps: Sequence[Dense]) -> dict[Site, Gram]:
    """Gram of every input of these maps of the block that a walk stands before, by the name of the input.

    Args:
        walk: Stays where it is.
        maps: Maps of that block.

    Raises:
        SkerryError: An input that is NaN or infinite.
    """
    found = {site: Gram(width) for site, width in _widths(walk.anatomy, maps).items()}
    _read_block(walk, maps, lambda site, x: found[site].update(x))
    for site, gram in found.items():
        _check_finite(site, gram.matrix.diagonal())
    return found


def block_norms(walk: Walk, maps: Sequence[Dense]) -> dict[Site, ColumnNorms]:
    """Column norms of every input of these maps of the block that a walk stands before, by the name of the input.

    Args:
        walk: Stays where it is.
        maps: Maps of that block.

    Raises:
        SkerryError: An input that is NaN or infinite.
    """
    found = {site: ColumnNorms(width) for site, width in _widths(walk.anatomy, maps).items()}
    _read_block(walk, maps, lambda site, x: found[site].update(x))
    for site, norms in found.items():
        _check_finite(site, norms.squares)
    return found


def _read_block(walk: Walk, maps: Sequence[Dense], show: Show) -> None:
    for number, keep in enumerate(walk.keep):
        with watch_kept(walk.anatomy, maps, keep, show):
            walk.run_one(number)
