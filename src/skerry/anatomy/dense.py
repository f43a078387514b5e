"""The linear maps of a model as they are stored: what is quantized, pruned, or changed on a seam is one of these.

A weight site is a piece of meaning (`w.q`); a dense map is a piece of storage: q, k and v may lie in one parameter, the experts of a block
in one tensor, a weight as [in, out]. `Dense.weight` is always a view [out in] on the stored numbers, so that writing into it changes the
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skerry.anatomy.experts import observe_experts
from skerry.anatomy.model import Anatomy, BoundMatrix
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import first_tensor, rows_of

# Weight part -> the activation that it reads.
READS = {
    "w.q": "attn.in",
    "w.k": "attn.in",
    "w.v": "attn.in",
    "w.attn.gate": "attn.in",
    "w.o": "attn.mix",
    "w.gate": "mlp.in",
    "w.up": "mlp.in",
    "w.down": "mlp.down.in",
}
ROUTERS = {"w.router": "mlp.in", "w.router.shared": "mlp.in"}
HEAD = {"w.head": "head.in"}
# New values [row channel] of what a map reads; it must not write into the old ones.
InputEdit = Callable[[Float[Tensor, "row channel"]], Tensor]


@dataclass(frozen=True, eq=False)
class Dense:
    """One linear map as it is stored.

    Attributes:
        name: Path of its module in the model, e.g. `model.layers.0.self_attn.q_proj`; of an expert the path of the parameter and its
            number, `model.layers.0.mlp.experts.down_proj[3]`.
        module: The module that holds the weight.
        key: Attribute of the weight in the module.
        layer: Block number; None for the head.
        reads: The activation site that it reads. Of a routed expert's gate and up projection that is the block's `mlp.in`, of which the
            expert sees the tokens that are routed to it.
        expert: Number of the expert inside the parameter.
        transposed: Stored [in, out].
        pieces: Weight part to the rows that it has in this map.
    """

    name: str
    module: nn.Module
    key: str
    layer: int | None
    reads: Site
    expert: int | None = None
    transposed: bool = False
    pieces: Mapping[str, Int[Tensor, "row"]] = field(default_factory=dict)

    @property
    def parameter(self) -> Tensor:
        """The stored weight, of all experts together."""
        return getattr(self.module, self.key)

    @property
    def weight(self) -> Float[Tensor, "row column"]:
        """A view [out in] on the stored numbers, without gradient."""
        w = self.parameter.detach()
        w = w if self.expert is None else w[self.expert]
        return w.T if self.transposed else w

    @property
    def bias_key(self) -> str:
        """Attribute of the bias in the module, whether it has one or not."""
        return "bias" if self.expert is None else f"{self.key}_bias"

    @property
    def bias(self) -> Float[Tensor, "row"] | None:
        """A view on the bias, without gradient; None where the map has none."""
        b = getattr(self.module, self.bias_key, None)
        if not isinstance(b, Tensor):
            return None
        return b.detach() if self.expert is None else b.detach()[self.expert]

    @property
    def is_routed(self) -> bool:
        """Whether it is one of several experts in one parameter."""
        return self.expert is not None

    @property
    def can_take_bias(self) -> bool:
        """Whether the module adds a bias if it is given one: what `torch.nn.Linear` computes."""
        return isinstance(self.module, nn.Linear) and not self.is_routed

    def add_bias(self) -> Float[Tensor, "row"]:
        """The bias; one of zeros is made where there is none.

        Raises:
            ValueError: The module's forward would not read it.
        """
        if (b := self.bias) is not None:
            return b
        if not self.can_take_bias:
            raise ValueError(f"{self.name} ({type(self.module).__name__}) cannot take a bias")
        zeros = torch.zeros(self.weight.shape[0], dtype=self.parameter.dtype, device=self.parameter.device)
        self.module.bias = nn.Parameter(zeros, requires_grad=self.parameter.requires_grad)  # type: ignore[assignment]
        return self.module.bias.detach()  # type: ignore[union-attr,operator]

    def rows(self, part: str) -> Int[Tensor, "row"]:
        """The rows of a weight part in this map."""
        return self.pieces[part]

    def __repr__(self) -> str:
        return f"<Dense {self.name} [{', '.join(map(str, self.weight.shape))}]: {', '.join(self.pieces)} of {self.reads}>"


def dense_maps(anatomy: Anatomy, *, routers: bool = False, head: bool = False) -> list[Dense]:
    """The linear maps of all blocks, in order; each is named once, with all weight parts that lie in it.

    Args:
        anatomy: The model with its places.
        routers: Routers of experts too.
        head: The language-model head too, where it is not tied to the embedding.
    """
    wanted = {**READS, **(ROUTERS if routers else {}), **(HEAD if head else {})}
    owners = _owners(anatomy.model)
    grouped: dict[tuple[int, int | None], list[tuple[Site, BoundMatrix]]] = {}
    for site in anatomy.weight_sites:
        bound = anatomy.matrices[site]
        if site.part in wanted and not bound.more and id(bound.parameter) in owners:
            grouped.setdefault((id(bound.parameter), bound.expert), []).append((site, bound))
    found = [_dense(anatomy, wanted, owners, members) for members in grouped.values()]
    return sorted(found, key=lambda d: (d.layer is None, d.layer or 0))


def _owners(model: nn.Module) -> dict[int, tuple[str, nn.Module, str]]:
    """Parameter to the first module that holds it, with its path and the attribute's name."""
    found: dict[int, tuple[str, nn.Module, str]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (path, module, key))
    return found


def _dense(
    anatomy: Anatomy,
    wanted: Mapping[str, str],
    owners: Mapping[int, tuple[str, nn.Module, str]],
    members: list[tuple[Site, BoundMatrix]],
) -> Dense:
    site, bound = members[0]
    path, module, key = owners[id(bound.parameter)]
    expert = bound.expert
    # A shared expert counts behind the routed ones and has a module of its own.
    reader = site.expert if site.part == "w.down" else None
    shape = bound.parameter.shape if expert is None else bound.parameter.shape[1:]
    # A fused projection is cut along its outputs: the last axis where it is stored [in, out].
    num_rows = shape[1] if bound.matrix.transposed else shape[0]
    numbers = torch.arange(num_rows)
    pieces = {
        s.part: numbers if b.matrix.split is None else b.matrix.split(numbers, anatomy.dims)
        for s, b in members
    }
    return Dense(
        name=path if expert is None else f"{path}.{key}[{expert}]",
        module=module,
        key=key,
        layer=site.layer,
        reads=Site(site.layer, wanted[site.part], reader),
        expert=expert,
        transposed=bound.matrix.transposed,
        pieces=pieces,
    )


@contextmanager
def change_inputs(anatomy: Anatomy, edits: Mapping[Dense, InputEdit]) -> Iterator[None]:
    """Give linear maps other inputs while open; whatever else reads the same tensor keeps the old one.

    Args:
        anatomy: The model with its places.
        edits: Map to a function of what it reads, [row channel], that returns new values of the same shape. A function may return the
            tensor that it was given, to look on only. The inputs of an expert's gate and up projection, which lie in one parameter, are
            one tensor.
    """
    with ExitStack() as stack:
        routed: dict[tuple[int | None, str, int], InputEdit] = {}
        for dense, edit in edits.items():
            if dense.expert is None:
                handle = dense.module.register_forward_pre_hook(_before(edit), with_kwargs=True)
                stack.callback(handle.remove)
            else:
                part = "mlp.down.in" if "w.down" in dense.pieces else "mlp.in"
                routed[dense.layer, part, dense.expert] = edit
        if routed:

            def deliver(layer: int, part: str, expert: int, x: Tensor, rows: Tensor) -> Tensor | None:
                edit = routed.get((layer, part, expert))
                return None if edit is None else edit(x)

            layers = {layer for layer, _, _ in routed}
            places = {layer: module for layer, module in anatomy.experts.items() if layer in layers}
            stack.enter_context(observe_experts(anatomy.model, places, deliver))
        yield


def _before(edit: InputEdit) -> Callable[..., Any]:
    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        x = first_tensor(args, kwargs)
        if x is None:
            return None
        rows = rows_of(x)
        new = edit(rows)
        if new is rows:
            return None
        new = new.reshape(x.shape).to(x.dtype)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return before


@contextmanager
def watch_inputs(
    anatomy: Anatomy, maps: Iterable[Dense], show: Callable[[Dense, Float[Tensor, "row channel"]], None]
) -> Iterator[None]:
    """Show what linear maps read, [row channel], while open. An expert shows only the tokens that are routed to it."""

    def looking(dense: Dense) -> InputEdit:
        def look(x: Tensor) -> Tensor:
            show(dense, x)
            return x

        return look

    with change_inputs(anatomy, {dense: looking(dense) for dense in maps}):
        yield


@contextmanager
def replace_weights(weights: Mapping[Dense, Tensor]) -> Iterator[None]:
    """Give linear maps other weights [out in] while open; the old ones come back bit for bit."""
    old: list[tuple[Dense, Tensor]] = []
    try:
        for dense, new in weights.items():
            old.append((dense, dense.weight.clone()))
            with torch.inference_mode(dense.parameter.is_inference()), torch.no_grad():
                dense.weight.copy_(new)
        yield
    finally:
        for dense, before in reversed(old):
            with torch.inference_mode(dense.parameter.is_inference()), torch.no_grad():
                dense.weight.copy_(before)
