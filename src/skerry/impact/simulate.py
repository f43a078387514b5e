"""Quantization simulated on any model: weights and inputs of linear maps, attention and its cache hold only values of their grids while open.

    y = Q_a(x) Q_w(W)^T + b        Q(x) = nearest value of a grid to x, in the dtype of x

Everything between linear maps stays as it is; so do the head, the embedding and routers. Limit: a scheme that leaves everything alone (16
bits) opens nothing, and the model is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skerry.anatomy.asked import numbers
from skerry.anatomy.attention_change import can_change_attention
from skerry.anatomy.dense import Dense, dense_maps, replace_weights
from skerry.anatomy.model import Anatomy
from skerry.errors import UnknownOption, near_matches
from skerry.impact.quantize import Grid, fake_quantize, observe
from skerry.impact.rows import RowEdit, Rows, change_rows
from skerry.impact.scheme import Scheme, TensorSpec, check_group
from skerry.impact.simulate_attention import quantize_attention


@dataclass(frozen=True, eq=False)
class Simulation:
    """A quantized model, as far as floating point can show it.

    Attributes:
        scheme: What is quantized, and how.
        grids: Grids of inputs whose range is static, by name of the linear map; `skerry.impact.calibrate` finds them.
        weights: Quantized weights [out in] found elsewhere (GPTQ, ...), by name; maps that are not named are rounded to nearest.
        keep_columns: Input channels of a map that stay in full precision, weight column and activation; they count for no range
            (LLM.int8, Dettmers et al. 2022, section 3.2).
        keep_entries: Flat entries (row * number of columns + column) of a weight that stay in full precision and count for no range.
        keep_positions: First positions of every input that are not quantized, in what maps read and in the cache.
        clip: Inputs of a map are clipped to (low, high) before rounding.
        only: Names of the maps that are quantized; all by default. Attention is quantized by the scheme alone.
        keep_above: Rows of a map's input whose largest |x| is above the number stay in full precision and count for no range, where the
            range is of the tensor at hand.
    """

    scheme: Scheme
    grids: Mapping[str, Grid] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    keep_columns: Mapping[str, Tensor] = field(default_factory=dict)
    keep_entries: Mapping[str, Tensor] = field(default_factory=dict)
    keep_positions: int = 0
    clip: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    only: frozenset[str] | None = None
    keep_above: Mapping[str, float] = field(default_factory=dict)

    def maps(self, anatomy: Anatomy) -> list[Dense]:
        """The linear maps that are quantized."""
        return [d for d in dense_maps(anatomy) if self.only is None or d.name in self.only]

    def skipped(self, anatomy: Anatomy) -> list[str]:
        """What holds a linear map and is left alone, with the reason."""
        known = {d.name: d for d in dense_maps(anatomy, routers=True, head=True)}
        here = {d.name for d in dense_maps(anatomy)}
        found = [
            f"{name}: not among the maps asked for"
            for name in here
            if self.only is not None and name not in self.only
        ]
        found += [
            f"{name}: {'the head' if d.layer is None else 'a router'} stays in full precision"
            for name, d in known.items()
            if name not in here
        ]
        held = {id(d.module) for d in known.values()}
        head = _output_head(anatomy.model)
        found += [
            f"{name}: {'the head stays in full precision' if module is head else 'no part of attention or feed-forward in any block'}"
            for name, module in anatomy.model.named_modules()
            if _is_linear(module) and id(module) not in held
        ]
        return sorted(found)

    def notes(self, anatomy: Anatomy) -> list[str]:
        """What the scheme asks for and this model cannot be given, in words."""
        asked = [kind for kind in ("attention", "kv") if getattr(self.scheme, kind) is not None]
        if not asked or not anatomy.attention or can_change_attention(anatomy.model):
            return []
        what = " and ".join(
            {"attention": "attention products", "kv": "the cache of keys and values"}[k] for k in asked
        )
        layers = sorted(anatomy.attention)
        return [
            f"{what} not quantized in blocks {layers[0]} to {layers[-1]}: {type(anatomy.model).__name__} computes attention in code of its own"
        ]

    def check(self, anatomy: Anatomy, *, calibrated: bool = True) -> None:
        """Refuse what cannot be done, before any forward.

        Args:
            anatomy: The model.
            calibrated: Whether grids of static ranges must be there already.

        Raises:
            UnknownOption: A name that no map has, a missing grid, a group size that does not divide a width, a channel or entry that
                does not exist, a weight of another shape, a static range where only ranges at hand exist.
        """
        every = {d.name: d for d in dense_maps(anatomy)}
        for what, names in self._named().items():
            for name in names:
                if name not in every:
                    near = near_matches(name, list(every))
                    raise UnknownOption(
                        f"{what} names {name!r}; no linear map is called so{f'; did you mean {near}?' if near else ''}"
                    )
        if self.keep_positions < 0:
            raise UnknownOption(
                f"keep_positions is {self.keep_positions}; it is a number of positions, 0 or more"
            )
        for dense in self.maps(anatomy):
            self._check_map(dense, calibrated=calibrated)
        for kind in ("attention", "kv"):
            spec: TensorSpec | None = getattr(self.scheme, kind)
            if spec is not None and not spec.dynamic:
                raise UnknownOption(
                    f"{kind}={spec}: only ranges of the tensor at hand are simulated here; take 'dynamic'"
                )
            if anatomy.attention:
                check_group(anatomy.dims.head_dim, spec, f"{kind} of a head")

    def _named(self) -> dict[str, Any]:
        return {
            "grids": self.grids,
            "weights": self.weights,
            "keep_columns": self.keep_columns,
            "keep_entries": self.keep_entries,
            "clip": self.clip,
            "only": self.only or (),
            "keep_above": self.keep_above,
        }

    def _check_map(self, dense: Dense, *, calibrated: bool) -> None:
        name, spec = dense.name, self.scheme.inputs
        num_rows, num_columns = dense.weight.shape
        for kind in (self.scheme.weights, spec):
            check_group(num_columns, kind, name)
        if calibrated and spec is not None and not spec.dynamic and name not in self.grids:
            raise UnknownOption(
                f"the inputs of {name} have a static range and no grid was given; calibrate(...) finds them"
            )
        if name in self.weights and self.weights[name].shape != dense.weight.shape:
            raise UnknownOption(
                f"the weight given for {name} is {tuple(self.weights[name].shape)}; the map's is {tuple(dense.weight.shape)}"
            )
        if name in self.keep_columns:
            numbers(self.keep_columns[name], num_columns, what="channel", where=f"the input of {name}")
        if name in self.keep_entries:
            numbers(
                self.keep_entries[name], num_rows * num_columns, what="entry", where=f"the weight of {name}"
            )

    @contextmanager
    def open(self, anatomy: Anatomy) -> Iterator[None]:
        """Quantize while open; afterwards everything is as it was, bit for bit.

        Raises:
            UnknownOption: As `check` says.
        """
        self.check(anatomy)
        shared = _Shared()
        maps = self.maps(anatomy)
        with ExitStack() as stack:
            for dense in maps:
                if (weight := self.rounded_weight(dense)) is not None:
                    stack.enter_context(replace_weights({dense: weight}))
            edits = {d: shared(self._key(d), edit) for d in maps if (edit := self._input_edit(d)) is not None}
            if edits:
                stack.enter_context(change_rows(anatomy, edits))
            if (
                (self.scheme.attention or self.scheme.kv)
                and anatomy.attention
                and can_change_attention(anatomy.model)
            ):
                stack.enter_context(
                    quantize_attention(anatomy, self.scheme, keep_positions=self.keep_positions)
                )
            yield

    def rounded_weight(self, dense: Dense) -> Float[Tensor, "row column"] | None:
        """The weight that a map has while open; None where it keeps its own."""
        old, spec = dense.weight, self.scheme.weights
        given = self.weights.get(dense.name)
        if given is None and spec is None:
            return None
        kept = self._kept_entries(dense)
        if given is not None:
            new = given.to(old)
        else:
            assert spec is not None
            # Entries that stay must not stretch the grid of the others: 0 lies in every range.
            seen = old.contiguous() if kept is None else old.masked_fill(kept, 0.0)
            new = fake_quantize(seen, spec)
        return new if kept is None else torch.where(kept, old, new)

    def _kept_entries(self, dense: Dense) -> Bool[Tensor, "row column"] | None:
        columns, entries = self.keep_columns.get(dense.name), self.keep_entries.get(dense.name)
        if columns is None and entries is None:
            return None
        num_rows, num_columns = dense.weight.shape
        kept = torch.zeros(num_rows, num_columns, dtype=torch.bool, device=dense.weight.device)
        if columns is not None:
            kept[:, numbers(columns, num_columns, what="channel", where=dense.name).to(kept.device)] = True
        if entries is not None:
            flat = numbers(entries, num_rows * num_columns, what="entry", where=dense.name).to(kept.device)
            kept.view(-1)[flat] = True
        return kept

    def _key(self, dense: Dense) -> tuple[Any, ...]:
        """Maps with equal keys that read the same tensor are given the same values."""
        name = dense.name
        columns, grid = self.keep_columns.get(name), self.grids.get(name)
        return (
            dense.reads,
            self.clip.get(name),
            self.keep_above.get(name),
            None if columns is None else tuple(torch.as_tensor(columns).reshape(-1).tolist()),
            None if grid is None else tuple(tuple(t.reshape(-1).tolist()) for t in grid),
        )

    def _input_edit(self, dense: Dense) -> RowEdit | None:
        spec, clip = self.scheme.inputs, self.clip.get(dense.name)
        if spec is None and clip is None:
            return None
        columns = self.keep_columns.get(dense.name)
        width = dense.weight.shape[1]
        kept: Tensor | None = None
        if columns is not None:
            kept = torch.zeros(width, dtype=torch.bool)
            kept[numbers(columns, width, what="channel", where=dense.name)] = True
        above, grid = self.keep_above.get(dense.name), self.grids.get(dense.name)

        def edit(x: Tensor, places: Rows | None) -> Tensor:
            stays = self._rows_that_stay(x, places, above)
            mask = None if kept is None else kept.to(x.device)
            new = x if clip is None else x.clamp(*clip)
            if spec is not None:
                seen = new if mask is None else new.masked_fill(mask, 0.0)
                new = round_rows(
                    seen, spec, grid, stays=stays, counts=None if places is None else places.counts
                )
            if mask is not None:
                new = torch.where(mask, x, new)
            return new if stays is None else torch.where(stays[:, None], x, new)

        return edit

    def _rows_that_stay(
        self, x: Tensor, places: Rows | None, above: float | None
    ) -> Bool[Tensor, "row"] | None:
        stays = None if above is None else x.abs().amax(-1) > above
        if self.keep_positions:
            if places is None:
                raise UnknownOption(
                    "keep_positions needs to know which row is which position, and this model's forward does not tell"
                )
            first = places.position < self.keep_positions
            stays = first if stays is None else stays | first
        return stays


def round_rows(
    x: Float[Tensor, "row column"],
    spec: TensorSpec,
    grid: Grid | None,
    *,
    stays: Bool[Tensor, "row"] | None = None,
    counts: Bool[Tensor, "row"] | None = None,
) -> Float[Tensor, "row column"]:
    """Rows rounded to a grid given, or to one of their own range; padding and rows that stay do not stretch a range over rows.

    Args:
        x: The rows.
        spec: How they are quantized.
        grid: A static grid; None for the range at hand.
        stays: Rows that are in full precision anyway.
        counts: False at padding.
    """
    if spec.dynamic:
        grid = None
        if spec.granularity in ("tensor", "column"):
            out = None if stays is None else ~stays
            if counts is not None and not bool(counts.all()):
                out = counts if out is None else out & counts
            if out is not None:
                if not bool(out.any()):
                    return x
                grid = observe(x[out], spec)
    return fake_quantize(x, spec, grid)


class _Shared:
    """Several maps that read one tensor get one result: query, key and value projections round the same rows."""

    def __init__(self) -> None:
        self._last: dict[tuple[Any, ...], tuple[Tensor, tuple[Any, ...], Tensor]] = {}

    def __call__(self, key: tuple[Any, ...], edit: RowEdit) -> RowEdit:
        def once(x: Tensor, places: Rows | None) -> Tensor:
            # The rows are kept, so that an equal address is the same tensor; the version tells what was written into it since.
            version = None if x.is_inference() else x._version
            now = (x.data_ptr(), tuple(x.shape), tuple(x.stride()), x.dtype, version)
            last = self._last.get(key)
            if last is not None and last[1] == now:
                return last[2]
            new = edit(x, places)
            self._last[key] = (x, now, new)
            return new

        return once


def _output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    return get() if get is not None else None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


__all__ = ["Simulation", "round_rows"]
