"""Reads attention while a model runs, without changing its result and without asking it to keep its probabilities.

Two ways in. Architectures built on transformers' attention interface get an implementation of ours, which shows queries, keys and
values to the observer and then calls the kernel that the model would have used. All others are watched from inside their attention
module: a torch function mode sees their softmax, or their scaled_dot_product_attention.

Never ask for `output_attentions=True` here: under sdpa it returns an empty tuple without a word.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IMPLEMENTATION = "skerry"


@dataclass(frozen=True)
class AttentionView:
    """One layer's attention as its softmax sees it. Either query and key are given, or logits.

    Attributes:
        layer: Block number from 0.
        num_heads: Query heads; grouped keys are not expanded: query head h reads key head h * num_kv_heads // num_heads.
        scale: Factor on the product of query and key.
        softcap: Logits are softcap * tanh(logits / softcap) before masking; None without.
        sink_logits: Learned logits that take mass and carry no value; None without.
        mask: Bool, True where visible, or additive; broadcasts to [sample, head, query, key]; None without.
        is_causal: Whether query i sees only keys up to i (on top of `mask`).
        query: After rotation and norms.
        key: After rotation and norms.
        value: None where the architecture hides it.
        logits: Scaled and masked scores, where the model computes them itself.
    """

    layer: int
    num_heads: int
    scale: float
    softcap: float | None
    sink_logits: Float[Tensor, "head"] | None
    mask: Tensor | None
    is_causal: bool
    query: Float[Tensor, "sample head query channel"] | None
    key: Float[Tensor, "sample kv_head key channel"] | None
    value: Float[Tensor, "sample kv_head key channel"] | None
    logits: Float[Tensor, "sample head query key"] | None


Observer = Callable[[AttentionView], None]
# Attention module -> (layer, observer, kernel that the model used before). Filled while a watch is open.
_watched: dict[int, tuple[int, Observer, str]] = {}


def naive_logits(view: AttentionView) -> Float[Tensor, "sample head query key"]:
    """The logits that the softmax reads, -inf where masked; for tests and single sequences: it is quadratic in memory."""
    if view.logits is not None:
        return view.logits
    assert view.query is not None and view.key is not None
    key = view.key.repeat_interleave(view.query.shape[1] // view.key.shape[1], dim=1)
    logits = (view.query @ key.transpose(-1, -2)) * view.scale
    if view.softcap is not None:
        logits = view.softcap * torch.tanh(logits / view.softcap)
    if view.mask is not None:
        logits = (
            logits.masked_fill(~view.mask, -math.inf) if view.mask.dtype == torch.bool else logits + view.mask
        )
    if view.is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(future, -math.inf)
    return logits


def naive_probs(view: AttentionView) -> Float[Tensor, "sample head query key"]:
    """The attention weights, without the share of a learned sink; for tests and single sequences."""
    logits = naive_logits(view).float()
    if view.sink_logits is None:
        return logits.softmax(dim=-1)
    sink = view.sink_logits.to(logits).view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]


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
    layer, observer, kernel = _watched[id(module)]
    mask, bias = attention_mask, kwargs.get("position_bias")
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True)) if causal is None else bool(causal)
    is_causal = causal and mask is None and query.shape[2] > 1
    if bias is not None:
        mask = (
            bias
            if mask is None
            else torch.where(mask, bias, -math.inf)
            if mask.dtype == torch.bool
            else bias + mask
        )
    observer(
        AttentionView(
            layer=layer,
            num_heads=query.shape[1],
            scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=kwargs.get("softcap"),
            sink_logits=kwargs.get("s_aux"),
            mask=mask,
            is_causal=is_causal,
            query=query,
            key=key,
            value=value,
            logits=None,
        )
    )
    return _compute(module, kernel, query, key, value, attention_mask, is_causal, scaling, kwargs)


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
    function = ALL_ATTENTION_FUNCTIONS["sdpa" if kernel == "eager" else kernel]
    return function(module, query, key, value, mask, scaling=scaling, **kwargs)


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


def uses_interface(model: nn.Module) -> bool:
    """Whether the attention of this model can be taken over through transformers' attention interface."""
    check = getattr(model, "_can_set_attn_implementation", None)
    return bool(check and check())


@contextmanager
def observe_attention(
    model: nn.Module, places: Mapping[int, nn.Module], observer: Observer
) -> Iterator[None]:
    """Show every attention of the blocks in `places` (layer to attention module) to the observer while open."""
    if uses_interface(model):
        with _through_interface(model, places, observer):
            yield
    else:
        with ExitStack() as stack:
            for layer, module in places.items():
                stack.enter_context(_through_functions(module, layer, observer))
            yield


@contextmanager
def _through_interface(
    model: nn.Module, places: Mapping[int, nn.Module], observer: Observer
) -> Iterator[None]:
    _register()
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = {
        i: c._attn_implementation_internal
        for i, c in configs.items()
        if hasattr(c, "_attn_implementation_internal")
    }
    kernels = {
        layer: getattr(getattr(m, "config", None), "_attn_implementation", None) or "sdpa"
        for layer, m in places.items()
    }
    for layer, module in places.items():
        _watched[id(module)] = (layer, observer, kernels[layer])
    try:
        for i in before:
            configs[i]._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for i, implementation in before.items():
            configs[i]._attn_implementation_internal = implementation
        for module in places.values():
            _watched.pop(id(module), None)


class _SoftmaxMode(TorchFunctionMode):
    """Sees the softmax or the fused attention that a module calls."""

    def __init__(self, layer: int, observer: Observer) -> None:
        super().__init__()
        self.layer, self.observer = layer, observer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self._show_fused(*args, **kwargs)
        elif name in ("softmax", "_softmax") and args and args[0].dim() == 4 and args[0].is_floating_point():
            self._show_logits(args[0])
        return func(*args, **kwargs)

    def _show_logits(self, logits: Tensor) -> None:
        self.observer(
            AttentionView(
                self.layer, logits.shape[1], 1.0, None, None, None, False, None, None, None, logits.detach()
            )
        )

    def _show_fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        del dropout_p, enable_gqa
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        self.observer(
            AttentionView(
                self.layer, query.shape[1], scale, None, None, attn_mask, is_causal, query, key, value, None
            )
        )


@contextmanager
def _through_functions(module: nn.Module, layer: int, observer: Observer) -> Iterator[None]:
    open_modes: list[_SoftmaxMode] = []

    def enter(*_: Any) -> None:
        mode = _SoftmaxMode(layer, observer)
        mode.__enter__()
        open_modes.append(mode)

    def leave(*_: Any) -> None:
        if open_modes:
            open_modes.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
