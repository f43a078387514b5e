"""A model with its places named: the family's declaration bound to the modules of one model, and checked by one small forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerry.anatomy.family import BiasFormat, Family, Matrix, Tap
from skerry.anatomy.sites import Site
from skerry.anatomy.splits import Dims


@dataclass(frozen=True)
class BoundTap:
    """A tap on one module of one model."""

    module: nn.Module
    tap: Tap


@dataclass(frozen=True)
class BoundMatrix:
    """A parameter of one model, with the way to read it; `more` are parameters of the same matrix that continue its rows."""

    parameter: Tensor
    matrix: Matrix
    expert: int | None = None
    more: tuple[Tensor, ...] = ()


@dataclass
class Anatomy:
    """All places of one model.

    Attributes:
        model: The model; only `trunk` is run by a scan: a head's logits are no site.
        trunk: The model without its head.
        family: Name of the declaration, or `traced`.
        dims: Widths.
        taps: Activation site to tap.
        matrices: Weight site to parameter.
        attention: Layer to the module that computes scores and softmax.
        experts: Layer to the module of its routed experts.
        num_experts: Routed experts per layer (0 without).
        same_as: Site to the earlier site that is the very same tensor.
        unplaced: What could not be placed, in words.
        confidence: `declared`, or how a traced architecture was resolved.
        biases: How its checkpoint gets biases on v and o, see `Family`.
        shortcuts: Layer and sublayer (`attn`, `mlp`) of post-norm blocks to the module that adds the shortcut and the position of that
            argument.
        cannot: What its seams cannot carry, see `Family`.
    """

    model: nn.Module
    trunk: nn.Module
    family: str
    dims: Dims
    taps: dict[Site, BoundTap]
    matrices: dict[Site, BoundMatrix]
    attention: dict[int, nn.Module]
    experts: dict[int, nn.Module]
    num_experts: int = 0
    same_as: dict[Site, Site] = field(default_factory=dict)
    unplaced: tuple[str, ...] = ()
    confidence: str = "declared"
    biases: BiasFormat | None = None
    shortcuts: dict[tuple[int, str], tuple[nn.Module, int]] = field(default_factory=dict)
    cannot: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The model's configuration, None for a plain module."""
        return getattr(self.model, "config", None)

    @property
    def activation_sites(self) -> list[Site]:
        """All activation sites that stand for themselves or for others, in order; expert sites included."""
        routed = [
            Site(layer, part, expert)
            for layer in self.experts
            for part in ("mlp.gate", "mlp.up", "mlp.down.in", "mlp.out")
            for expert in range(self.num_experts)
        ]
        return sorted([*self.taps, *routed])

    @property
    def weight_sites(self) -> list[Site]:
        """All weight sites, in order."""
        return sorted(self.matrices)

    def weight(self, site: Site) -> Tensor:
        """The parameter at a weight site, [row, column] = [output, input]; norms and sinks are vectors. A view where possible."""
        bound = self.matrices[site]
        parameter = torch.cat([bound.parameter, *bound.more]) if bound.more else bound.parameter
        w = read_matrix(parameter, bound.matrix, self.dims, bound.expert)
        return w.reshape(-1) if site.part.startswith("norm.") else w

    def __repr__(self) -> str:
        return (
            f"<Anatomy of {type(self.model).__name__}: {self.dims.num_layers} blocks, {len(self.activation_sites)} activation and "
            f"{len(self.matrices)} weight sites, {self.confidence}; watch(anatomy) reads them>"
        )


def read_matrix(parameter: Tensor, matrix: Matrix, dims: Dims, expert: int | None = None) -> Tensor:
    """A parameter turned to [output, input], cut and shifted as its declaration says."""
    w = parameter.detach()
    if expert is not None:
        w = w[expert]
    if w.dim() > 1:
        if matrix.split is None:
            w = w.T if matrix.transposed else w
        else:  # splits cut the last axis, and that must be the outputs
            w = matrix.split(w if matrix.transposed else w.T, dims).T
    elif matrix.split is not None:
        w = matrix.split(w, dims)
    return w + matrix.plus if matrix.plus else w


def get(root: nn.Module, path: str) -> Any:
    """The module or parameter at a dotted path; None when there is none."""
    place: Any = root
    for name in path.split(".") if path else ():
        place = (
            place[int(name)]
            if name.isdigit() and isinstance(place, nn.ModuleList)
            else getattr(place, name, None)
        )
        if place is None:
            return None
    return place


def find_trunk(model: nn.Module) -> nn.Module:
    """The model without its head."""
    return getattr(model, "base_model", model)


def bind(model: nn.Module, family: Family, dims: Dims, blocks: Sequence[nn.Module]) -> Anatomy:
    """Bind a declaration to a model: every place that exists gets its module, every place that does not is left out."""
    trunk = find_trunk(model)
    if family.dims is not None:
        dims = family.dims(dims, text_config(model.config))
    anatomy = Anatomy(model, trunk, family.name, dims, taps={}, matrices={}, attention={}, experts={})
    anatomy.biases, anatomy.cannot = family.biases, family.cannot
    for layer, block in enumerate(blocks):
        _bind_block(anatomy, family, layer, block)
    for part, candidates in family.outer.items():
        _bind_matrix(anatomy, Site(None, part), candidates, trunk)
    if family.head_in is not None and (final := get(trunk, family.head_in)) is not None:
        anatomy.taps[Site(None, "head.in")] = BoundTap(final, Tap("", "output"))
    _drop_tied(anatomy)
    return anatomy


def _bind_block(anatomy: Anatomy, family: Family, layer: int, block: nn.Module) -> None:
    experts = get(block, family.experts) if family.experts else None
    if experts is not None and hasattr(experts, "num_experts"):
        anatomy.experts[layer] = experts
        anatomy.num_experts = int(experts.num_experts)
    for part, candidates in family.activations.items():
        for tap in _candidates(candidates):
            module = get(block, tap.module)
            if isinstance(module, nn.Module):
                anatomy.taps[Site(layer, part)] = BoundTap(module, tap)
                break
    for part, matrices in family.weights.items():
        _bind_matrix(anatomy, Site(layer, part), matrices, block)
    if family.shared_expert and (shared := get(block, family.shared_expert)) is not None:
        _bind_shared_expert(anatomy, layer, shared)
    for sublayer, (path, position) in family.shortcuts.items():
        if (adder := get(block, path)) is not None:
            anatomy.shortcuts[layer, sublayer] = (adder, position)
    if family.attention is not None and (attention := get(block, family.attention)) is not None:
        anatomy.attention[layer] = attention


def _bind_shared_expert(anatomy: Anatomy, layer: int, shared: nn.Module) -> None:
    """An expert that every token passes counts behind the routed ones."""
    index = anatomy.num_experts
    places = {
        "mlp.gate": ("gate_proj", "output"),
        "mlp.up": ("up_proj", "output"),
        "mlp.down.in": ("down_proj", "input"),
    }
    for part, (name, side) in {**places, "mlp.out": ("down_proj", "output")}.items():
        anatomy.taps[Site(layer, part, index)] = BoundTap(get(shared, name), Tap(name, side))  # type: ignore[arg-type]
    for part, name in {"w.gate": "gate_proj", "w.up": "up_proj", "w.down": "down_proj"}.items():
        matrix = Matrix(f"{name}.weight")
        anatomy.matrices[Site(layer, part, index)] = BoundMatrix(get(shared, matrix.path), matrix)


def _bind_matrix(
    anatomy: Anatomy, site: Site, candidates: Matrix | Sequence[Matrix], root: nn.Module
) -> None:
    for matrix in _candidates(candidates):
        start = anatomy.model if matrix.path.startswith("//") else root
        found = _parameters(start, matrix.path.lstrip("/"))
        if found:
            experts = range(found[0].shape[0]) if matrix.experts else [None]
            for expert in experts:
                bound = BoundMatrix(found[0], matrix, expert, more=tuple(found[1:]))
                anatomy.matrices[site._replace(expert=expert)] = bound
            return


def _parameters(root: nn.Module, path: str) -> list[Tensor]:
    before, star, after = path.partition(".*.")
    places = [get(root, path)] if not star else [get(m, after) for m in get(root, before) or ()]
    return [p for p in places if isinstance(p, Tensor)]


def _candidates(place: Any) -> Iterable[Any]:
    return place if isinstance(place, (list, tuple)) else (place,)


def _drop_tied(anatomy: Anatomy) -> None:
    head, embed = (anatomy.matrices.get(Site(None, part)) for part in ("w.head", "w.embed"))
    if head and embed and head.parameter.data_ptr() == embed.parameter.data_ptr():
        del anatomy.matrices[Site(None, "w.head")]


def text_config(config: Any) -> Any:
    """The configuration of the text model: a part of a multi-modal model's, else the configuration itself."""
    part = getattr(config, "get_text_config", None)
    return config if part is None else part()


def dims_of(model: nn.Module, config: Any, blocks: Sequence[nn.Module] | nn.ModuleList) -> Dims:
    """Widths from the configuration; families with other names map them through transformers' attribute map."""
    config = text_config(config)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    hidden = int(config.hidden_size)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = getattr(config, "head_dim", None) or (hidden // heads if heads else 0)
    return Dims(len(blocks), hidden, heads, kv_heads, int(head_dim))


@torch.no_grad()
def run(anatomy: Anatomy, input_ids: Tensor, keep: Tensor | None = None) -> Any:
    """One forward of the trunk: no head, no cache, nothing kept."""
    kwargs: Mapping[str, Any] = (
        {} if keep is None or bool(keep.all()) else {"attention_mask": keep.to(torch.long)}
    )
    if anatomy.config is not None and hasattr(anatomy.config, "use_cache"):
        kwargs = {**kwargs, "use_cache": False}
    device = next(anatomy.model.parameters()).device
    return anatomy.trunk(
        input_ids.to(device), **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    )
