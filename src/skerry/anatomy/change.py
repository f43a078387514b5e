"""Changes what a model computes or holds while open, and leaves no trace: the ground of every intervention.

A change at a place reaches everything that reads that place. Where the tap is one reader of several (`attn.in` is read by q, k and v,
`mlp.in` by gate and up), all of them are given the changed tensor. `resid.mid` of a pre-norm block is the stream itself: the
feed-forward is added to it, so the change is made in the tensor and not only in what the norm reads.

Hooks run in the order in which they were opened: a `watch` opened after a change sees the changed tensor, one opened before sees the
old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy.experts import observe_experts
from skerry.anatomy.model import Anatomy, BoundMatrix, BoundTap, read_matrix
from skerry.anatomy.routers import change_router, is_router
from skerry.anatomy.sites import STREAMED, Site
from skerry.anatomy.watch import first_tensor
from skerry.errors import UnknownOption, UnknownSite

# Values [row channel] and the flat token of each row (None: row r is token r) to new values of the same shape.
Edit = Callable[[Tensor, Tensor | None], Tensor]
# The first reader's tap stands for a place that several matrices read.
_READERS = {"attn.in": ("w.q", "w.k", "w.v"), "mlp.in": ("w.gate", "w.up")}


@contextmanager
def change(anatomy: Anatomy, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Give the model other values at activation sites while open.

    Args:
        anatomy: The model with its places.
        edits: Site to a function of its values [row channel] and the flat token of each row (None: row r is token r); it returns
            new values of the same shape and must not write into the old ones. What it returns is copied: models write into
            their tensors.

    Raises:
        UnknownSite: The model has no such activation, or it cannot be changed there.
        UnknownOption: In a forward: the new values have another shape.
    """
    for site in edits:
        check_changeable(anatomy, site)
    with ExitStack() as stack:
        for site, edit in edits.items():
            if site in anatomy.taps:
                stack.enter_context(_change_tap(anatomy, site, edit))
        routed = {site: edit for site, edit in edits.items() if site not in anatomy.taps}
        if routed:
            stack.enter_context(_change_experts(anatomy, routed))
        yield


def check_changeable(anatomy: Anatomy, site: Site) -> None:
    """Refuse a site that `change` cannot change.

    Raises:
        UnknownSite: With the reason.
    """
    if site.part in STREAMED:
        raise UnknownSite(
            f"{site} never exists as a tensor that could be changed; change attn.q, attn.k or attn.mix instead"
        )
    routed = site.expert is not None and site.layer in anatomy.experts
    if site not in anatomy.taps and not (routed and (site.expert or 0) < anatomy.num_experts):
        raise UnknownSite(
            f"{type(anatomy.model).__name__} has no activation {site}; it has {len(anatomy.taps)}: {_some(anatomy)}"
        )


def _some(anatomy: Anatomy) -> str:
    return ", ".join(map(str, sorted(anatomy.taps)[:6])) + ", ..."


@contextmanager
def _change_tap(anatomy: Anatomy, site: Site, edit: Edit) -> Iterator[None]:
    bound = anatomy.taps[site]

    def changed(x: Tensor | None) -> Tensor:
        return _changed(anatomy, site, bound, edit, x)

    with ExitStack() as stack:
        if bound.tap.side == "input":
            _change_input(anatomy, site, bound, changed, stack)
        elif is_router(bound.module, site):
            stack.enter_context(change_router(bound.module, changed))
        else:
            handle = bound.module.register_forward_hook(
                lambda _m, _a, out: _with_first(out, changed(first_tensor(out)))
            )
            stack.callback(handle.remove)
        yield


def _change_input(
    anatomy: Anatomy,
    site: Site,
    bound: BoundTap,
    changed: Callable[[Tensor | None], Tensor],
    stack: ExitStack,
) -> None:
    in_place = site.part == "resid.mid"
    readers = _readers(anatomy, site, bound)
    once = _Once(changed) if len(readers) > 1 else lambda _reader, x: changed(x)

    def before(reader: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        x = first_tensor(args, kwargs)
        new = once(reader, x)
        if in_place and x is not None:
            x.copy_(new)
            return None
        return (_with_first(args, new), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    for module in readers:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
        stack.callback(handle.remove)


class _Once:
    """Several readers of one tensor get one result; a reader that asks again is in another forward."""

    def __init__(self, changed: Callable[[Tensor | None], Tensor]) -> None:
        self.changed = changed
        self.old: Tensor | None = None
        self.new: Tensor | None = None
        self.served: set[int] = set()

    def __call__(self, reader: nn.Module, x: Tensor | None) -> Tensor:
        if self.new is None or self.old is not x or id(reader) in self.served:
            self.old, self.new, self.served = x, self.changed(x), set()
        self.served.add(id(reader))
        return self.new


def _readers(anatomy: Anatomy, site: Site, bound: BoundTap) -> list[nn.Module]:
    """The modules that read the place: the tap's own, and those of the other matrices that read the same tensor."""
    parts = _READERS.get(site.part, ())
    wanted = {
        id(found.parameter)
        for part in parts
        if (found := anatomy.matrices.get(Site(site.layer, part, site.expert))) is not None
    }
    owners = [m for m in anatomy.model.modules() if any(id(p) in wanted for p in m.parameters(recurse=False))]
    # A tap on a whole feed-forward (a router and its experts) covers all that is inside.
    inside = set(map(id, bound.module.modules()))
    return [bound.module, *(m for m in owners if id(m) not in inside)]


def _changed(anatomy: Anatomy, site: Site, bound: BoundTap, edit: Edit, x: Tensor | None) -> Tensor:
    if x is None:
        raise UnknownSite(f"{site} holds no tensor in this forward, so it cannot be changed")
    split = bound.tap.split
    if split is None:
        return _same_shape(site, edit(x.reshape(-1, x.shape[-1]), None), x)
    index = split(torch.arange(x.shape[-1], device=x.device), anatomy.dims)
    piece = x.index_select(-1, index)
    new = _same_shape(site, edit(piece.reshape(-1, piece.shape[-1]), None), piece)
    return x.index_copy(-1, index, new)


def _same_shape(site: Site, new: Tensor, like: Tensor) -> Tensor:
    rows = like.reshape(-1, like.shape[-1])
    if new.shape != rows.shape:
        raise UnknownOption(
            f"the change at {site} gave values of shape {list(new.shape)}; [row channel] = {list(rows.shape)} is needed"
        )
    # A copy: the model may write into what it is given (Falcon adds, OLMo clips), and the values may be the caller's own.
    return new.reshape(like.shape).to(like, copy=True)


def _with_first(whole: Any, new: Tensor) -> Any:
    """A module's arguments or output with another first tensor."""
    if isinstance(whole, Tensor):
        return new
    return (new, *whole[1:]) if isinstance(whole, tuple) else [new, *whole[1:]]


@contextmanager
def _change_experts(anatomy: Anatomy, edits: Mapping[Site, Edit]) -> Iterator[None]:
    def deliver(layer: int, part: str, expert: int, x: Tensor, rows: Int[Tensor, "row"]) -> Tensor | None:
        edit = edits.get(Site(layer, part, expert))
        return None if edit is None else _same_shape(Site(layer, part, expert), edit(x, rows), x)

    layers = {site.layer for site in edits}
    places = {layer: module for layer, module in anatomy.experts.items() if layer in layers}
    with observe_experts(anatomy.model, places, deliver):
        yield


@contextmanager
def weight_entries(
    anatomy: Anatomy,
    site: Site,
    rows: Sequence[int] | Tensor | None,
    columns: Sequence[int] | Tensor,
    edit: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    """Give some entries of a weight other values while open; the old ones come back bit for bit.

    Tied matrices change together (an embedding that is also the head). Values are as `anatomy.weight(site)` shows them.

    Args:
        anatomy: The model with its places.
        site: A weight site.
        rows: Row of each entry; None for a norm's gain, a vector.
        columns: Column of each entry.
        edit: Old values [entry] to new ones.

    Raises:
        UnknownSite: The model has no such weight.
        IndexError: An entry outside the matrix.
    """
    if site not in anatomy.matrices:
        raise UnknownSite(f"{type(anatomy.model).__name__} has no weight {site}; `skerry sites` lists all")
    bound = anatomy.matrices[site]
    if bound.more:
        raise UnknownSite(
            f"{site} is spread over {1 + len(bound.more)} parameters; its entries cannot be changed"
        )
    flat = _flat_entries(anatomy, bound, rows, columns)
    parameter, plus = bound.parameter, bound.matrix.plus
    with torch.inference_mode() if parameter.is_inference() else torch.no_grad():
        old = parameter.reshape(-1)[flat].clone()
        new = edit(old + plus if plus else old.clone()).to(old)
        _put(parameter, flat, new - plus if plus else new)
    try:
        yield
    finally:
        with torch.inference_mode() if parameter.is_inference() else torch.no_grad():
            _put(parameter, flat, old)


def _put(parameter: Tensor, flat: Tensor, values: Tensor) -> None:
    parameter.detach().index_put_(tuple(torch.unravel_index(flat, parameter.shape)), values)


def _flat_entries(
    anatomy: Anatomy, bound: BoundMatrix, rows: Sequence[int] | Tensor | None, columns: Sequence[int] | Tensor
) -> Int[Tensor, "entry"]:
    """Where the entries are in the flattened parameter, through whatever the declaration does to it."""
    parameter = bound.parameter
    number = torch.arange(parameter.numel(), device=parameter.device).reshape(parameter.shape)
    number = read_matrix(number, replace(bound.matrix, plus=0.0), anatomy.dims, bound.expert)
    c = torch.as_tensor(columns, device=number.device, dtype=torch.int64).reshape(-1)
    if rows is None or number.dim() == 1:
        return number.reshape(-1)[c]
    r = torch.as_tensor(rows, device=number.device, dtype=torch.int64).reshape(-1)
    return number[r, c]
