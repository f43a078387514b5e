"""GPTQ: weights are rounded column by column, and those to the right make up for what that does to the output.

Frantar et al. 2210.17323, section 3. With H = X X^T + damping mean(diag H) I and the upper factor H^-1 = U^T U, for j from left to right:

    q_ij = nearest value of the grid to w_ij        e_ij = (w_ij - q_ij) / U_jj        w_i,j: -= e_ij U_j,j:

so that before its turn every column is the least-squares answer to the columns that are already rounded,

    w_R = w0_R + H_RR^-1 H_RF (w0_F - q_F),    F the columns done, R the rest; w0 the weight before.

A grid per channel or tensor is that of the weight before. A grid per group is found when the first column of the group is reached, from the
weights as they are by then; with act order (columns of largest diag H first) groups are not reached one by one, so their grids are those of
the weight before. Inputs that were never seen (zero in all of calibration) are rounded to nearest; published code sets their weights to 0.

Rounding in this order is greedy, and may lose to rounding to nearest in a row. Such a row is rounded to nearest instead, so that no row's
error on the calibration inputs, (w - q) G (w - q)^T, is above that of rounding to nearest. Limit: inputs that are orthogonal give rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, UnknownOption
from skerry.impact.quantize import Grid, fake_quantize, observe, round_trip
from skerry.impact.scheme import Scheme, TensorSpec, check_group
from skerry.impact.simulate import Simulation
from skerry.impact.sparsegpt import BLOCK, DAMPING, inverse_factor
from skerry.measure.gram import block_grams, input_of, start_walk
from skerry.run.progress import Progress, Silent


class GptqResult(NamedTuple):
    """A rounded weight.

    Attributes:
        weight: Values of the grid, in the dtype of the weight.
        grid: The grid, as `skerry.impact.quantize.observe` shapes it.
        error: (w - q) G (w - q)^T of every row, the squared error of its output summed over the calibration tokens.
        error_nearest: The same of rounding to nearest.
        is_nearest: Rows that are rounded to nearest, because that errs less.
    """

    weight: Float[Tensor, "row column"]
    grid: Grid
    error: Float[Tensor, "row"]
    error_nearest: Float[Tensor, "row"]
    is_nearest: Bool[Tensor, "row"]


Results = Mapping[str, GptqResult]
OnBlock = Callable[[int, dict[str, GptqResult]], None]


@torch.no_grad()
def gptq(
    weight: Float[Tensor, "row column"],
    gram: Float[Tensor, "column column"],
    spec: TensorSpec,
    *,
    block: int = BLOCK,
    damping: float = DAMPING,
    act_order: bool = False,
) -> GptqResult:
    """Round one weight.

    Args:
        weight: The weight [out in]; not changed.
        gram: sum x x^T of what it reads.
        spec: The grid.
        block: Columns that are worked on together; changes the time and not the result.
        damping: Share of the mean diagonal added to the Gram matrix.
        act_order: Columns of largest diag H first.

    Raises:
        UnknownOption: A group size that does not divide the columns, a singular Gram matrix without damping.
    """
    check_group(weight.shape[1], spec, "a weight")
    wide = torch.promote_types(weight.dtype, torch.float32)
    g = gram.to(weight.device)
    order = g.diagonal().argsort(descending=True, stable=True) if act_order else None
    before = weight.contiguous()
    w = before.to(wide, copy=True)
    columns = _Columns(before, spec, order)
    if order is not None:
        w, g = w[:, order], g[order][:, order]
    u = inverse_factor(g, damping).upper.to(wide)
    q = torch.empty_like(w)
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        errors = torch.empty_like(w[:, start:stop])
        for j in range(start, stop):
            if columns.opens_group(j):
                # Columns of the group behind this block have not been told of the block's own errors yet.
                ahead = columns.group_of(w, j)
                ahead[:, stop - j :] -= errors[:, : j - start] @ u[start:j, stop : j + ahead.shape[1]]
                columns.find(j, ahead)
            q[:, j] = columns.nearest(w[:, j], j)
            errors[:, j - start] = (w[:, j] - q[:, j]) / u[j, j]
            w[:, j:stop] -= errors[:, j - start, None] * u[j, j:stop]
        w[:, stop:] -= errors @ u[start:stop, stop:]
    if order is not None:
        q = q[:, order.argsort()]
    return _keep_better(before, q.to(weight.dtype), columns.grid(), gram.to(weight.device, wide), spec)


class _Columns:
    """The grid of one column after another."""

    def __init__(self, weight: Tensor, spec: TensorSpec, order: Tensor | None) -> None:
        self.spec, self.order, self.dtype = spec, order, weight.dtype
        # One column is a slice of one value per row, whatever the spec calls its slices.
        self._size = spec.group_size or 0
        # nvfp4 has a scale of the whole tensor beside those of its groups.
        self._is_static = not self._size or order is not None or spec.number == "nvfp4"
        self._whole = observe(weight, spec) if self._is_static else None
        self._found: list[Grid] = []

    def opens_group(self, column: int) -> bool:
        """Whether a grid is to be found before this column."""
        return not self._is_static and column % self._size == 0

    def group_of(self, weight: Tensor, column: int) -> Tensor:
        """The group that begins at a column, as a copy."""
        return weight[:, column : column + self._size].clone()

    def find(self, column: int, group: Tensor) -> None:
        """Find the grid of the group that begins here."""
        self._found.append(observe(group.to(self.dtype), self.spec))

    def nearest(self, values: Tensor, column: int) -> Tensor:
        """The nearest values of the column's grid."""
        return round_trip(values[:, None], self.spec, self._at(column))[:, 0].to(values)

    def _at(self, column: int) -> Grid:
        if self._whole is None:
            return Grid(*(t[:, 0] for t in self._found[-1]))
        if not self._size:
            return self._whole
        group = (column if self.order is None else int(self.order[column])) // self._size
        return Grid(*(t[:, group] for t in self._whole))

    def grid(self) -> Grid:
        """Of the whole weight."""
        if self._whole is not None:
            return self._whole
        return Grid(*(torch.cat(parts, dim=1) for parts in zip(*self._found, strict=True)))


def _keep_better(weight: Tensor, q: Tensor, grid: Grid, gram: Tensor, spec: TensorSpec) -> GptqResult:
    own = observe(weight, spec)
    nearest = fake_quantize(weight, spec, own)
    error, error_nearest = row_errors(weight, q, gram), row_errors(weight, nearest, gram)
    worse = error > error_nearest
    if bool(worse.any()):
        q = torch.where(worse[:, None], nearest, q)
        if grid.scale.shape[0] > 1:  # a grid of the whole tensor is the same in both
            rows = worse.reshape(-1, *[1] * (grid.scale.dim() - 1))
            grid = Grid(*(torch.where(rows, mine, theirs) for mine, theirs in zip(own, grid, strict=True)))
    return GptqResult(q, grid, torch.where(worse, error_nearest, error), error_nearest, worse)


def row_errors(
    weight: Float[Tensor, "row column"],
    rounded: Float[Tensor, "row column"],
    gram: Float[Tensor, "column column"],
) -> Float[Tensor, "row"]:
    """(w - q) G (w - q)^T of every row."""
    d = weight.to(gram) - rounded.to(gram)
    return ((d @ gram) * d).sum(1)


def gptq_model(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    scheme: Scheme,
    *,
    maps: Sequence[Dense] | None = None,
    grids: Mapping[str, Grid] | None = None,
    block: int = BLOCK,
    damping: float = DAMPING,
    act_order: bool = False,
    progress: Progress | None = None,
    on_block: OnBlock | None = None,
    done: Iterable[tuple[int, Results]] = (),
) -> dict[str, GptqResult]:
    """Round the weights of a model block by block, each on what the blocks before it, already quantized, give it.

    The model is as before afterwards; `Simulation(scheme, weights={name: r.weight ...})` is the quantized one. All maps of a block are rounded
    on what they read while the block itself is whole.

    Args:
        anatomy: The model.
        batches: Calibration data.
        scheme: The grids of weights and, for what blocks hand on, of the rest.
        maps: The maps to round; all by default.
        grids: Of static inputs, as `Simulation.grids`.
        block: Columns that are worked on together.
        damping: Share of the mean diagonal added to a Gram matrix.
        act_order: Columns of largest diag H first.
        progress: Told about every block.
        on_block: Given each block's number and results as soon as they exist, so that they can be stored.
        done: Blocks and their results from an earlier call that ended early; they are taken as they are.

    Returns:
        Name of the map to its result, those of `done` included.

    Raises:
        UnknownOption: A scheme that leaves weights alone, static inputs without grids.
        EmptyBatch: No calibration data.
        NotPossible: A model whose blocks cannot run alone.
        SkerryError: An input that is NaN or infinite.
    """
    spec, progress = scheme.weights, progress or Silent()
    if spec is None:
        raise UnknownOption(f"GPTQ rounds weights, and {scheme} leaves them alone; w4a16-g128 is an example")
    if not len(batches):
        raise EmptyBatch("GPTQ rounds on what maps read, and there is no calibration data")
    maps = dense_maps(anatomy) if maps is None else maps
    earlier, found = dict(done), {}
    _check(anatomy, scheme, maps, grids or {})
    walk = start_walk(anatomy, batches, maps)
    last = max(d.layer for d in maps if d.layer is not None)
    progress.start("GPTQ", last + 1, "blocks")
    for layer in walk:
        members = [d for d in maps if d.layer == layer]
        results = dict(earlier.get(layer, {}))
        if missing := [d for d in members if d.name not in results]:
            grams = block_grams(walk, missing)
            for dense in missing:
                gram = grams[input_of(anatomy, dense)].matrix
                results[dense.name] = gptq(
                    dense.weight, gram, spec, block=block, damping=damping, act_order=act_order
                )
            del grams
            if on_block is not None:
                on_block(layer, results)
        found.update(results)
        progress.advance()
        if layer == last:
            break
        walk.advance(walk.run(_quantized(scheme, grids or {}, members, results).open(anatomy)))
    progress.done()
    return found


def _check(anatomy: Anatomy, scheme: Scheme, maps: Sequence[Dense], grids: Mapping[str, Grid]) -> None:
    """What is asked for must be possible before the long work."""
    if outside := [d.name for d in maps if d.layer is None]:
        raise UnknownOption(f"{outside[0]} lies outside the blocks: head and embedding stay as they are")
    names = frozenset(d.name for d in maps)
    Simulation(scheme, {n: g for n, g in grids.items() if n in names}, only=names).check(anatomy)


def _quantized(
    scheme: Scheme, grids: Mapping[str, Grid], members: Sequence[Dense], results: Results
) -> Simulation:
    names = frozenset(d.name for d in members)
    return Simulation(
        scheme,
        grids={n: g for n, g in grids.items() if n in names},
        weights={n: r.weight for n, r in results.items() if n in names},
        only=names,
    )
