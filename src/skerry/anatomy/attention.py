"""Reads attention while a model runs, without changing its result and without asking it to keep its probabilities.

Two ways in. Architectures built on transformers' attention interface get an implementation of ours, which shows queries, keys and
values to the observer and then calls the kernel that the model would have used. All others are watched from inside their attention
module: a torch function mode sees their softmax, or their scaled_dot_product_attention.

Never ask for `output_attentions=True` here: under sdpa it returns an empty tuple without a word.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skerry.anatomy.attention_functions import through_functions
from skerry.anatomy.attention_view import HIDDEN, AttentionView, naive_logits, naive_probs
from skerry.anatomy.unseen import is_unseen

IMPLEMENTATION = "skerry"
Listed = TypeVar("Listed")
Observer = Callable[[AttentionView], None]


@dataclass(frozen=True)
class AttentionEdit:
    """Other values for what one layer's attention computes with; either may be None.

    Attributes:
        tensors: New query, key and value from the layer and the old ones, of the same shapes; it must not write into the old ones.
        probs: New probabilities [sample head query key] from the layer and the old ones.
    """

    tensors: Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    probs: Callable[[int, Float[Tensor, "sample head query key"]], Tensor] | None = None


# While a watch is open: attention module -> the observers of its layer (several when watches are nested), and
# configuration -> the kernel that the model used before.
_observers: dict[int, list[tuple[int, Observer]]] = {}
# The same for what changes attention, see `skerry.anatomy.attention_change`; changes come before what observers see.
_edits: dict[int, list[tuple[int, AttentionEdit]]] = {}
_kernels: dict[int, str] = {}


def _interface_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The implementation that transformers calls while a watch is open: show, then compute as before."""
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True)) if causal is None else bool(causal)
    is_causal = causal and attention_mask is None and query.shape[2] > 1
    edits = _edits.get(id(module), ())
    for layer, edit in edits:
        if edit.tensors is not None:
            query, key, value = edit.tensors(layer, query, key, value)

    own: OwnAttention | None = kwargs.get("own")

    def seen(layer: int) -> AttentionView:
        return AttentionView(
            layer=layer,
            num_heads=query.shape[1],
            scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=kwargs.get("softcap"),
            sink_logits=kwargs.get("s_aux") if own is None else own.sink_logits(query),
            mask=_with_bias(attention_mask, kwargs.get("position_bias")),
            is_causal=is_causal,
            query=query if own is None else own.shown(query),
            key=key,
            value=value,
            logits=None,
            weights=None if own is None else own.weights,
        )

    for layer, observer in _observers.get(id(module), ()):
        observer(seen(layer))
    out = (
        None
        if own is None
        else own.attention(query, key, value, mask=attention_mask).transpose(1, 2).contiguous()
    )
    if any(edit.probs is not None for _, edit in edits):
        return _with_other_probs(seen(edits[0][0]), edits, out)
    if out is not None:
        return out, None
    kernel = _kernels.get(id(getattr(module, "config", None)), "sdpa")
    return _compute(module, kernel, query, key, value, attention_mask, is_causal, scaling, kwargs)


def _with_other_probs(
    view: AttentionView, edits: Sequence[tuple[int, AttentionEdit]], out: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Attention step by step, as the interface returns it: [sample query head channel].

    Where attention computes itself, what the tokens' weights do not explain (a sink's value, a second map) is in `out` and stays.
    """
    assert view.value is not None
    # A query that sees no key is padding; its row must not spoil the ranges of the others.
    before = probs = naive_probs(view).nan_to_num(0.0)
    for layer, edit in edits:
        if edit.probs is not None:
            probs = edit.probs(layer, probs)
    value = view.value.repeat_interleave(view.num_heads // view.value.shape[1], dim=1)
    if out is not None:
        return out + ((probs - before).to(value.dtype) @ value).transpose(1, 2), None
    return (probs.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    return torch.where(mask, bias, -math.inf) if mask.dtype == torch.bool else bias + mask


def _compute(
    module: nn.Module,
    kernel: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    # sdpa knows neither soft caps nor learned sinks; there the architecture's own eager form is the definition.
    needs_eager = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    if eager is not None and (kernel == "eager" or needs_eager):
        return eager(
            module, query, key, value, _additive(mask, is_causal, query, key), scaling=scaling, **kwargs
        )
    # The masks are made for sdpa (see `_register`), so sdpa also stands in for flash and flex attention: the same function.
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=scaling, **kwargs)


def _additive(mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    lowest = torch.finfo(query.dtype).min
    if mask is not None:
        return (
            mask
            if mask.dtype != torch.bool
            else torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, lowest)
        )
    if not is_causal:
        return None
    return query.new_full((query.shape[2], key.shape[2]), lowest).triu_(1)[None, None]


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if IMPLEMENTATION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _interface_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, sdpa_mask)


@runtime_checkable
class OwnAttention(Protocol):
    """Attention that computes itself and tells how: what skerry's own decoder hands to `through_interface`."""

    scale: float | None
    weights: Callable[[Tensor], Tensor] | None

    def sink_logits(self, query: Tensor) -> Tensor | None:
        """Logits that take mass, [head] or [sample head query]; None without."""

    def shown(self, query: Tensor) -> Tensor:
        """The queries that observers see."""

    def mask_of(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask that its softmax sees: bool, True where visible; None for causal."""

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
        """[sample head query channel]."""


def through_interface(
    module: nn.Module, own: OwnAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Float[Tensor, "sample head query channel"]:
    """Compute attention by `own`, and show it to whoever watches `module`; costs a dictionary look-up when nobody does."""
    mask = own.mask_of(query, key, mask)
    if is_unseen() or (id(module) not in _observers and id(module) not in _edits):
        return own.attention(query, key, value, mask=mask)
    out, _ = _interface_attention(
        module,
        query,
        key,
        value,
        mask,
        own.scale,
        own=own,
    )
    return out.transpose(1, 2)


def uses_interface(model: nn.Module) -> bool:
    """Whether the attention of this model can be taken over through transformers' attention interface."""
    check = getattr(model, "_can_set_attn_implementation", None)
    return bool(check and check())


@contextmanager
def observe_attention(
    model: nn.Module, places: Mapping[int, nn.Module], observer: Observer, *, num_heads: int = 0
) -> Iterator[None]:
    """Show every attention of the blocks in `places` (layer to attention module) to the observer while open.

    `num_heads` tells heads from samples where an architecture keeps both in one axis.
    """
    if uses_interface(model):
        with _through_interface(model, places, observer):
            yield
    else:
        with ExitStack() as stack:
            for layer, module in places.items():
                stack.enter_context(through_functions(module, layer, num_heads, observer))
            yield


@contextmanager
def _through_interface(
    model: nn.Module, places: Mapping[int, nn.Module], observer: Observer
) -> Iterator[None]:
    with taken_over(model), listed(_observers, places, observer):
        yield


@contextmanager
def listed(
    lists: dict[int, list[tuple[int, Listed]]], places: Mapping[int, nn.Module], item: Listed
) -> Iterator[None]:
    """Keep an observer or an edit in the lists of all attention modules in `places` while open."""
    entries = {id(module): (layer, item) for layer, module in places.items()}
    try:
        for module, entry in entries.items():
            lists.setdefault(module, []).append(entry)
        yield
    finally:
        for module, entry in entries.items():
            lists[module].remove(entry)
            if not lists[module]:
                del lists[module]


@contextmanager
def taken_over(model: nn.Module) -> Iterator[None]:
    """While open the attention of the model comes through `_interface_attention`."""
    _register()
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    replaced = {
        i: c._attn_implementation_internal
        for i, c in configs.items()
        # A watch around this one has already taken over; it also knows the model's own kernel.
        if getattr(c, "_attn_implementation_internal", IMPLEMENTATION) != IMPLEMENTATION
    }
    try:
        for i, implementation in replaced.items():
            _kernels[i] = implementation or "sdpa"
            configs[i]._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for i, implementation in replaced.items():
            configs[i]._attn_implementation_internal = implementation
            del _kernels[i]


__all__ = [
    "HIDDEN",
    "IMPLEMENTATION",
    "AttentionEdit",
    "AttentionView",
    "Observer",
    "OwnAttention",
    "listed",
    "naive_logits",
    "naive_probs",
    "observe_attention",
    "taken_over",
    "through_interface",
    "uses_interface",
]
