"""A quantized forward that can be differentiated: y = Q(x) Q(W)^T + b with a straight-through gradient.

Rounding has a gradient of 0 almost everywhere. The straight-through estimator passes the gradient on as if nothing had been rounded (Bengio et
al. 2013, arXiv 1308.3432, section 5). That alone says nothing of the range: halving the largest value of a slice halves all rounding
errors of the slice. With the error e = Q(x) - x in units of the range held fixed,

    Q(x) = x + e range(x) / range,   dQ/dx = 1 + (e / range) d range / dx

which is the gradient that learned step sizes have (Esser et al. 2020, arXiv 1902.08153, equation 3), through the range. The values are those
of a simulated quantization to nearest. A range that is static elsewhere is that of the tensor at hand here, padding included, since the
tensor changes while something is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skerry.anatomy.attention_change import AttentionEdit, can_change_attention, change_attention
from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.experts import observe_experts
from skerry.anatomy.model import Anatomy
from skerry.anatomy.watch import first_tensor
from skerry.impact.quantize import by_group, fake_quantize, min_max
from skerry.impact.scheme import Scheme, TensorSpec


def straight_through(x: Float[Tensor, "row column"], spec: TensorSpec) -> Float[Tensor, "row column"]:
    """The rounded values, with the gradient of x + e range(x) / range, e the rounding error at hand."""
    pieces = by_group(x, spec)
    error = by_group(fake_quantize(x.detach().contiguous(), spec), spec) - pieces.detach()
    low, high = min_max(pieces, spec)
    size = torch.maximum(-low, high) if spec.symmetric else high.clamp(min=0) - low.clamp(max=0)
    ratio = size / torch.where(size == 0, 1.0, size).detach()
    return (pieces + error * ratio).reshape(x.shape)


def stored_maps(anatomy: Anatomy) -> dict[str, Dense]:
    """Path of each parameter that holds linear maps of the blocks to one of the maps in it."""
    names = {id(p): name for name, p in anatomy.model.named_parameters()}
    return {names[id(d.parameter)]: d for d in dense_maps(anatomy)}


def quantized_weights(
    maps: Mapping[str, Dense], spec: TensorSpec | None, changed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Parameters for a functional call: those that are changed, and all linear maps of the blocks rounded to nearest.

    Args:
        maps: What `stored_maps` gave.
        spec: How weights are quantized; None leaves them.
        changed: Path to a parameter's new values, through which the gradient goes.
    """
    out = dict(changed)
    if spec is None:
        return out
    for name, dense in maps.items():
        values = changed.get(name, dense.parameter.detach())
        view = values.transpose(-1, -2) if dense.transposed else values

        # Experts of one parameter are rounded one by one: a grid belongs to one map.
        new = (
            straight_through(view, spec)
            if view.dim() == 2
            else torch.stack([straight_through(one, spec) for one in view])
        )
        out[name] = new.transpose(-1, -2) if dense.transposed else new
    return out


@contextmanager
def quantized_inputs(anatomy: Anatomy, maps: Mapping[str, Dense], scheme: Scheme) -> Iterator[None]:
    """Inputs of the linear maps, attention and cache rounded to nearest while open, with straight-through gradients."""
    with ExitStack() as stack:
        if (spec := scheme.inputs) is not None:

            def edit(x: Tensor) -> Tensor:
                return straight_through(x.reshape(-1, x.shape[-1]), spec).reshape(x.shape)

            def deliver(_layer: int, part: str, _expert: int, x: Tensor, _rows: Tensor) -> Tensor | None:
                return edit(x) if part in ("mlp.in", "mlp.down.in") else None

            modules = {id(d.module): d.module for d in maps.values() if not d.is_routed}
            for module in modules.values():
                handle = module.register_forward_pre_hook(_before(edit), with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(observe_experts(anatomy.model, anatomy.experts, deliver))
        if scheme.kv is not None or scheme.attention is not None:
            _attention(anatomy, scheme, stack)
        yield


def _before(edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        x = first_tensor(args, kwargs)
        if x is None:
            return None
        return ((edit(x), *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": edit(x)})

    return before


def _attention(anatomy: Anatomy, scheme: Scheme, stack: ExitStack) -> None:
    if not anatomy.attention or not can_change_attention(anatomy.model):
        return

    def rounded(x: Tensor, spec: TensorSpec | None) -> Tensor:
        """One grid per row of a head's matrix; a grid per column is one per head and channel, over tokens."""
        if spec is None or spec.granularity != "column":
            return x if spec is None else straight_through(x.reshape(-1, x.shape[-1]), spec).reshape(x.shape)
        rows = x.transpose(1, 2).flatten(2).flatten(0, 1)
        new = straight_through(rows, spec)
        return new.unflatten(0, (x.shape[0], -1)).unflatten(-1, (x.shape[1], -1)).transpose(1, 2)

    def tensors(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = rounded(k, scheme.kv), rounded(v, scheme.kv)
        return rounded(q, scheme.attention), rounded(k, scheme.attention), rounded(v, scheme.attention)

    def probs(_layer: int, p: Tensor) -> Tensor:
        return rounded(p, scheme.attention)

    edit = AttentionEdit(tensors, None if scheme.attention is None else probs)
    stack.enter_context(change_attention(anatomy.model, anatomy.attention, edit))
