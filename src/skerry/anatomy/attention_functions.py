"""Sees the softmax, or the scaled_dot_product_attention, that an attention module calls: the way in where there is no interface."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skerry.anatomy.attention_view import AttentionView


class _SoftmaxMode(TorchFunctionMode):
    """Sees the softmax or the fused attention that a module calls."""

    def __init__(self, layer: int, num_heads: int, observer: Callable[[AttentionView], None]) -> None:
        super().__init__()
        self.layer, self.num_heads, self.observer = layer, num_heads, observer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self._show_fused(*args, **kwargs)
        elif name in ("softmax", "_softmax"):
            self._show_logits(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)

    def _show_logits(self, logits: Tensor) -> None:
        if logits.dim() == 3 and self.num_heads and logits.shape[0] % self.num_heads == 0:
            logits = logits.unflatten(0, (-1, self.num_heads))  # [sample*head, query, key]
        if logits.dim() == 4 and logits.is_floating_point():
            self._show(logits.shape[1], logits=logits.detach())

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
        if query.dim() == 3 and self.num_heads:
            query, key, value = (
                x.unflatten(0, (-1, x.shape[0] * self.num_heads // query.shape[0]))
                for x in (query, key, value)
            )
        if query.dim() == 4:
            scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
            self._show(query.shape[1], query, key, value, attn_mask, scale=scale, is_causal=is_causal)

    def _show(
        self,
        num_heads: int,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        logits: Tensor | None = None,
        scale: float = 1.0,
        is_causal: bool = False,
    ) -> None:
        view = AttentionView(
            layer=self.layer,
            num_heads=num_heads,
            scale=scale,
            softcap=None,
            sink_logits=None,
            mask=mask,
            is_causal=is_causal,
            query=query,
            key=key,
            value=value,
            logits=logits,
        )
        # Another watch may be open around this one: what an observer computes must not be taken for attention.
        with torch._C.DisableTorchFunction():
            self.observer(view)


@contextmanager
def through_functions(
    module: nn.Module, layer: int, num_heads: int, observer: Callable[[AttentionView], None]
) -> Iterator[None]:
    """Wraps the module's forward, so that the mode is left on every way out of it."""
    before, own = module.forward, "forward" in vars(module)

    @functools.wraps(before)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _SoftmaxMode(layer, num_heads, observer):
            return before(*args, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        if own:
            module.forward = before
        else:
            del module.forward
