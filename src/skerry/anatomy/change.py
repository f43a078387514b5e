"""Changes what a model computes or holds while open, and leaves no trace: the ground of every intervention.

A change at a place reaches everything that reads that place. Where the tap is one reader of several (`attn.in` is read by q, k and v,
`mlp.in` by gate and up), all of them are given the changed tensor. `resid.mid` of a pre-norm block is the stream itself: the
feed-forward is added to it, so the change is made in the tensor and not only in what the norm reads.

Hooks run in the order in which they were opened: a `watch` opened after a change sees the changed tensor, one opened before sees the
old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy.asked import check_activation, missing, numbers
from skerry.anatomy.experts import observe_experts
from skerry.anatomy.model import Anatomy, BoundMatrix, BoundTap, read_matrix
from skerry.anatomy.routers import change_router, is_router
from skerry.anatomy.sites import Site
from skerry.anatomy.splits import Dims, Split
from skerry.anatomy.unseen import is_unseen
from skerry.anatomy.watch import first_tensor
from skerry.errors import UnknownOption, UnknownSite

# Values [row channel] and the flat token of each row (None: row r is token r) to new values of the same shape.
Edit = Callable[[Tensor, Tensor | None], Tensor]
# The first reader's tap stands for a place that several matrices read.
_READERS = {"attn.in": ("w.q", "w.k", "w.v", "w.attn.gate"), "mlp.in": ("w.gate", "w.up")}


@contextmanager
def change(anatomy: Anatomy, edits: Mapping[Site, Edit], *, first: bool = False) -> Iterator[None]:
    """Give the model other values at activation sites while open.

    Args:
        anatomy: The model with its places.
        edits: Site to a function of its values [row channel] and the flat token of each row (None: row r is token r); it returns
            new values of the same shape and must not write into the old ones. What it returns is copied: models write into
            their tensors.
        first: Before the changes that are open already, where the tap is what a module reads: for a change that stands for what
            the model itself computes there.

    Raises:
        UnknownSite: The model has no such activation, or it cannot be changed there.
        UnknownOption: In a forward: the new values have another shape.
    """
    for site in edits:
        check_activation(anatomy, site)
    with ExitStack() as stack:
        for site, edit in edits.items():
            if site in anatomy.taps:
                stack.enter_context(_change_tap(anatomy, site, edit, first))
        routed = {site: edit for site, edit in edits.items() if site not in anatomy.taps}
        if routed:
            stack.enter_context(_change_experts(anatomy, routed))
        yield


@contextmanager
def _change_tap(anatomy: Anatomy, site: Site, edit: Edit, first: bool) -> Iterator[None]:
    bound = anatomy.taps[site]

    def changed(x: Tensor | None) -> Tensor:
        return _changed(anatomy, site, bound, edit, x)

    with ExitStack() as stack:
        if bound.tap.side == "input":
            _change_input(anatomy, site, bound, changed, stack, first)
        elif is_router(bound.module, site):
            stack.enter_context(change_router(bound.module, changed))
        else:
            handle = bound.module.register_forward_hook(
                lambda _m, _a, out: None if is_unseen() else _with_first(out, changed(first_tensor(out)))
            )
            stack.callback(handle.remove)
        yield


def _change_input(
    anatomy: Anatomy,
    site: Site,
    bound: BoundTap,
    changed: Callable[[Tensor | None], Tensor],
    stack: ExitStack,
    first: bool,
) -> None:
    in_place = site.part == "resid.mid"
    readers = _readers(anatomy, site, bound)
    once = _Once(changed) if len(readers) > 1 else lambda _reader, x: changed(x)

    def before(reader: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        x = first_tensor(args, kwargs)
        if is_unseen():
            return None
        new = once(reader, x)
        if in_place and x is not None:
            x.copy_(new)
            return None
        return (_with_first(args, new), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    for module in readers:
        handle = module.register_forward_pre_hook(before, with_kwargs=True, prepend=first)
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
    # Attention may be watched by what it calls: an edit inside it must not be taken for a part of it.
    with torch._C.DisableTorchFunction():
        if bound.tap.split is None:
            return _same_shape(site, edit(x.reshape(-1, x.shape[-1]), None), x)
        piece = bound.tap.split(x, anatomy.dims)
        new = _same_shape(site, edit(piece.reshape(-1, piece.shape[-1]), None), piece)
        return _put_back(bound.tap.split, anatomy.dims, x, new)


def _put_back(split: Split, dims: Dims, x: Tensor, new: Tensor) -> Tensor:
    """The tensor with another piece."""
    try:
        index = split(torch.arange(x.shape[-1], device=x.device), dims)
    except IndexError:  # not only channels are picked: positions lie before samples
        index = split(torch.arange(x.numel(), device=x.device).reshape(x.shape), dims)
        return x.reshape(-1).index_copy(0, index.reshape(-1), new.reshape(-1)).reshape(x.shape)
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


@dataclass(frozen=True)
class Entries:
    """Some entries of a weight, found in its parameter.

    Attributes:
        parameter: Where they are stored.
        flat: Their places in the flattened parameter.
        plus: What is added to the stored values.
    """

    parameter: Tensor
    flat: Int[Tensor, "entry"]
    plus: float = 0.0


def find_entries(
    anatomy: Anatomy,
    site: Site,
    rows: int | Sequence[int] | Tensor | None,
    columns: int | Sequence[int] | Tensor,
) -> Entries:
    """The entries (row, column) of a weight; a single row or column goes with all of the other.

    Args:
        anatomy: The model with its places.
        site: A weight site.
        rows: Row of each entry; None for a vector (a norm's gain, learned sinks).
        columns: Column of each entry.

    Raises:
        UnknownSite: The model has no such weight, or it is spread over several parameters.
        UnknownOption: An entry outside the weight, or rows and columns that do not pair.
    """
    if site not in anatomy.matrices:
        raise missing(anatomy, site, anatomy.matrices)
    bound = anatomy.matrices[site]
    if bound.more:
        raise UnknownSite(
            f"{site} is spread over {1 + len(bound.more)} parameters; its entries cannot be changed"
        )
    shape = anatomy.weight(site).shape
    if (rows is None) != (len(shape) == 1):
        raise UnknownOption(
            f"{site} is a vector, so it has no rows; give None for them"
            if rows is not None
            else f"{site} is a matrix of shape {list(shape)}; give the rows of the entries too"
        )
    c = numbers(columns, shape[-1], what="column", where=site)
    if rows is None:
        return Entries(bound.parameter, _places(anatomy, bound).reshape(-1)[c], bound.matrix.plus)
    r = numbers(rows, shape[0], what="row", where=site)
    if len(r) != len(c) and 1 not in (len(r), len(c)):
        raise UnknownOption(f"{len(r)} rows and {len(c)} columns of {site} do not pair; give as many of each")
    r, c = torch.broadcast_tensors(r, c)
    return Entries(bound.parameter, _places(anatomy, bound)[r, c], bound.matrix.plus)


def _places(anatomy: Anatomy, bound: BoundMatrix) -> Tensor:
    """Place of each entry of the weight in the flattened parameter, through whatever the declaration does to it."""
    number, expert = bound.parameter, bound.expert
    one = number if expert is None else number[expert]
    # Only this expert is numbered: the numbers of all would take more memory than the parameter.
    numbered = torch.arange(one.numel()).reshape(one.shape)
    return read_matrix(numbered, replace(bound.matrix, plus=0.0), anatomy.dims) + (expert or 0) * one.numel()


@contextmanager
def weight_entries(
    anatomy: Anatomy,
    site: Site,
    rows: int | Sequence[int] | Tensor | None,
    columns: int | Sequence[int] | Tensor,
    edit: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    """Give some entries of a weight other values while open; the old ones come back bit for bit.

    Tied matrices change together (an embedding that is also the head). Values are as `anatomy.weight(site)` shows them.
    `rows` and `columns` are as in `find_entries`, whose errors it raises; `edit` turns old values [entry] into new ones.
    """
    with change_entries(find_entries(anatomy, site, rows, columns), edit):
        yield


# Storage of a parameter -> its open changes in the order in which they were opened.
_open: dict[int, list[_OpenEntries]] = {}


@contextmanager
def change_entries(entries: Entries, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give entries other values while open. They may be closed in any order: those still open stay in force."""
    change = _OpenEntries(entries, edit)
    change.apply()
    key = entries.parameter.untyped_storage().data_ptr()
    stack = _open.setdefault(key, [])
    stack.append(change)
    try:
        yield
    finally:
        later = stack[stack.index(change) + 1 :]
        for other in reversed(later):
            other.undo()
        change.undo()
        stack.remove(change)
        for other in later:
            other.apply()
        if not stack:
            del _open[key]


class _OpenEntries:
    """One open change of entries, and what they were before it."""

    def __init__(self, entries: Entries, edit: Callable[[Tensor], Tensor]) -> None:
        self.entries, self.edit = entries, edit
        self.old: Tensor | None = None

    def apply(self) -> None:
        at, plus = self.entries, self.entries.plus
        with _writing(at.parameter):
            old = at.parameter.reshape(-1)[at.flat.to(at.parameter.device)].clone()
            shown = old + plus if plus else old
            new = self.edit(shown.clone())
            if new.shape != old.shape:
                raise UnknownOption(
                    f"the change of {len(old)} weights gave values of shape {list(new.shape)}"
                )
            new = new.to(old)
            # Adding and taking away again would round what has not changed.
            self._put(torch.where(new == shown, old, new - plus) if plus else new)
        self.old = old

    def undo(self) -> None:
        assert self.old is not None
        with _writing(self.entries.parameter):
            self._put(self.old)

    def _put(self, values: Tensor) -> None:
        parameter = self.entries.parameter
        places = torch.unravel_index(self.entries.flat.to(parameter.device), parameter.shape)
        parameter.detach().index_put_(tuple(places), values)


def _writing(parameter: Tensor) -> AbstractContextManager[None]:
    # Parameters that were made in inference mode can be written only there.
    return torch.inference_mode() if parameter.is_inference() else torch.no_grad()
