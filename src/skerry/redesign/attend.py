"""Softmax attention with an optional sink, by the fastest kernel of the device, with exact gradients also for the sink.

    p_ij = exp(l_ij) / (exp(e_i) + sum_j exp(l_ij)),   l_ij = q_i . k_j scale        over the keys that query i sees
    out_i = sum_j p_ij v_j + p'_i v',                    p'_i = exp(e_i) / (exp(e_i) + sum_j exp(l_ij))

e_i is the sink's logit (a number per head, or per sample, head and query), v' its value (a vector per head; none means zero). A fused kernel
returns y = softmax(l) v and lse_i = log sum_j exp(l_ij); then p' = sigmoid(e - lse) and out = (1 - p') y + p' v'.

Backward needs no second kernel: the gradient of a logit is p_ij (g_i . v_j - g_i . out_i), and the kernel's own backward computes just that
from whatever `out` and `lse` it is handed. Handed the true out and log(exp(e) + sum exp(l)), it gives the exact gradients of q, k and v;
the sink's are  de_i = p'_i (g_i . v' - g_i . out_i)  and  dv' = sum_i p'_i g_i.
Limit: e = -inf is plain softmax attention; e = 0 and v' = 0 is softmax-off-by-one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Sink(NamedTuple):
    """A sink in the softmax.

    Attributes:
        logit: [head], or [sample head query].
        value: [head channel]; None for a sink that carries nothing.
    """

    logit: Tensor
    value: Float[Tensor, "head channel"] | None = None


def attend(
    query: Float[Tensor, "sample head query channel"],
    key: Float[Tensor, "sample kv_head key channel"],
    value: Float[Tensor, "sample kv_head key value_channel"],
    *,
    mask: Tensor | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    sink: Sink | None = None,
) -> Float[Tensor, "sample head query value_channel"]:
    """Softmax attention; with a sink where one is given.

    Args:
        query: After positions.
        key: After positions; grouped keys are expanded here.
        value: As the keys.
        mask: bool [sample 1 query key], True where visible; None for all (with `is_causal`: all up to the query).
        is_causal: Query i sees keys up to i; only without a mask.
        scale: Factor on the logits; 1 / sqrt(channel) by default.
        sink: What takes part in the softmax without being a token.
    """
    query, key, value = in_one_type(query, key, value)
    groups = query.shape[1] // key.shape[1]
    if sink is None:
        causal = is_causal and mask is None and query.shape[2] > 1
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
        )
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    logit = sink.logit if sink.logit.dim() == 3 else sink.logit[None, :, None].expand(query.shape[:3])
    if _has_cpu_kernel(query, value, mask):
        causal = is_causal and query.shape[2] > 1
        return _SinkAttention.apply(query, key, value, logit, sink.value, causal, scale)
    if query.is_cuda and mask is None:
        return _by_flex(query, key, value, logit, sink.value, is_causal=is_causal, scale=scale)
    return attend_eagerly(
        query, key, value, mask, is_causal=is_causal, scale=scale, sink=Sink(logit, sink.value)
    )


def in_one_type(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast in its type, as scaled_dot_product_attention does; else in that of the values: rotation may have widened the rest."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _has_cpu_kernel(query: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    return query.device.type == "cpu" and mask is None and query.shape[-1] == value.shape[-1]


class _SinkAttention(torch.autograd.Function):
    """The fused kernel of the CPU, between its forward and its backward the sink."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        logit: Tensor,
        sink_value: Tensor | None,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, scale=scale
        )
        total = torch.logaddexp(lse, logit.to(lse))
        share = torch.exp(logit.to(lse) - total)[..., None]
        out = y * (1 - share).to(y)
        if sink_value is not None:
            out = out + (share * sink_value[:, None].to(lse)).to(y)
        ctx.save_for_backward(query, key, value, out, total, share, sink_value)
        ctx.is_causal, ctx.scale, ctx.dtype = is_causal, scale, logit.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, out, total, share, sink_value = ctx.saved_tensors
        grad = grad.to(out)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, total, 0.0, ctx.is_causal, scale=ctx.scale
        )
        wide, share = grad.to(total), share[..., 0]
        gain = -(wide * out.to(total)).sum(-1)
        d_value = None
        if sink_value is not None:
            gain = gain + torch.einsum("bhqd,hd->bhq", wide, sink_value.to(total))
            d_value = torch.einsum("bhq,bhqd->hd", share, wide).to(sink_value)
        return dq, dk, dv, (share * gain).to(ctx.dtype), d_value, None, None


def _by_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    logit: Tensor,
    sink_value: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """FlexAttention also gives lse, with its gradient."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks = None
    if is_causal:
        behind = key.shape[2] - query.shape[2]
        blocks = create_block_mask(
            lambda b, h, q, k: q + behind >= k, None, None, query.shape[2], key.shape[2], query.device.type
        )
    y, lse = flex_attention(query, key, value, block_mask=blocks, scale=scale, return_lse=True)  # type: ignore[misc]
    share = torch.sigmoid(logit.to(lse) - lse)[..., None]
    out = (1 - share) * y
    out = out if sink_value is None else out + share * sink_value[:, None]
    return out.to(query.dtype)


def attend_eagerly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
    sink: Sink | None,
) -> Tensor:
    """The same from the definition; keys already expanded."""
    shown = logits(query, key, mask=mask, is_causal=is_causal, scale=scale)
    if sink is None:
        return shown.softmax(-1).to(value.dtype) @ value
    extra = sink.logit if sink.logit.dim() == 3 else sink.logit[None, :, None].expand(shown.shape[:3])
    weights = torch.cat([shown, extra[..., None].to(shown)], dim=-1).softmax(-1).to(value.dtype)
    out = weights[..., :-1] @ value
    return out if sink.value is None else out + weights[..., -1:] * sink.value[:, None]


def logits(
    query: Tensor, key: Tensor, *, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Float[Tensor, "sample head query key"]:
    """Scaled products, -inf where hidden; keys already expanded. At least float32."""
    groups = query.shape[1] // key.shape[1]
    key = key if groups == 1 else key.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if mask is not None:
        return scores.masked_fill(~mask, -torch.inf)
    if not is_causal or scores.shape[-2] == 1:
        return scores
    behind = scores.shape[-1] - scores.shape[-2]
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + behind)
    return scores.masked_fill(future, -torch.inf)
