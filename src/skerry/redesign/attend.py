"""Softmax attention with an optional sink, by the fastest kernel of the device, with exact gradients also for the sink.

    p_ij = exp(l_ij) / (exp(e_i) + sum_j exp(l_ij)),   l_ij = q_i . k_j scale        over the keys that query i sees
    out_i = sum_j p_ij v_j + p'_i v',                    p'_i = exp(e_i) / (exp(e_i) + sum_j exp(l_ij))

e_i is the sink's logit (a number per head, or per sample, head and query), v' its value (a vector per head, or per sample, head and query; none
means zero). A fused kernel returns y = softmax(l) v and lse_i = log sum_j exp(l_ij); then p' = sigmoid(e - lse) and out = (1 - p') y + p' v'.

Backward needs no second kernel: the gradient of a logit is p_ij (g_i . v_j - g_i . out_i), and the kernel's own backward computes just that
from whatever `out` and `lse` it is handed. Handed the true out and log(exp(e) + sum exp(l)), it gives the exact gradients of q, k and v;
the sink's are  de_i = p'_i (g_i . v' - g_i . out_i)  and  dv'_i = p'_i g_i.
A sink that is only added, out = y + p' v', leaves the tokens their weights: handed y + p' (1 - p') v' and the plain lse the kernel gives the
gradients of q, k and v, since dp'_i / dl_ij = -p'_i (1 - p'_i) softmax_ij;  de_i = p'_i (1 - p'_i) g_i . v'_i,  dv'_i = p'_i g_i.
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
        value: [head channel], or [sample head query channel]; None for a sink that carries nothing.
        is_added: The tokens keep weights that sum to one, and the sink's share of its value is added: out = y + p' v'.
    """

    logit: Tensor
    value: Tensor | None = None
    is_added: bool = False

    def spread(self, query: Float[Tensor, "sample head query channel"]) -> Sink:
        """The same with a logit and a value for every query."""
        logit, value = self.logit, self.value
        if logit.dim() == 1:
            logit = logit[None, :, None].expand(query.shape[:3])
        if value is not None and value.dim() == 2:
            value = value[:, None].expand(*query.shape[:3], -1)
        return Sink(logit, value, self.is_added)


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
    if _trains_faster_wide(query, key):
        with torch.autocast("cpu", enabled=False):
            wide = attend(
                query.float(),
                key.float(),
                value.float(),
                mask=mask,
                is_causal=is_causal,
                scale=scale,
                sink=sink,
            )
        return wide.to(query.dtype)
    groups = query.shape[1] // key.shape[1]
    # No fused kernel has a rule for vmap, by which gradients of single samples may be computed.
    one_by_one = torch._C._are_functorch_transforms_active()
    if sink is None and not one_by_one:
        causal = is_causal and mask is None and query.shape[2] > 1
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
        )
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    sink = None if sink is None else sink.spread(query)
    if sink is None or one_by_one:
        return attend_eagerly(query, key, value, mask, is_causal=is_causal, scale=scale, sink=sink)
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        causal = is_causal and mask is None and query.shape[2] > 1
        return _SinkAttention.apply(
            query, key, value, sink.logit, sink.value, sink.is_added, causal, _additive(mask, query), scale
        )
    if query.is_cuda and mask is None:
        return _by_flex(query, key, value, sink, is_causal=is_causal, scale=scale)
    return attend_eagerly(query, key, value, mask, is_causal=is_causal, scale=scale, sink=sink)


def _trains_faster_wide(query: Tensor, key: Tensor) -> bool:
    """Whether float32 is faster: the bfloat16 kernel of the CPU is slow backward on short sequences.

    Forward and backward in bfloat16 / through float32, one thread: 2.4 at 128 keys of 32 channels, 1.5 at 128 of 64, 1.3 at 256 of 32, 0.9 at 512
    of 64, 0.8 at 1024; forward alone they are equal.
    """
    is_trained = torch.is_grad_enabled() and query.requires_grad
    return is_trained and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= 256


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The mask as the kernel wants it: 0 where visible and -inf elsewhere."""
    return None if mask is None else query.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)


def in_one_type(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast in its type, as scaled_dot_product_attention does; else in that of the values: rotation may have widened the rest."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


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
        is_added: bool,
        is_causal: bool,
        mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        total = torch.logaddexp(lse, logit.to(lse))
        share = torch.exp(logit.to(lse) - total)[..., None]
        out = y if is_added else y * (1 - share).to(y)
        handed = out
        if sink_value is not None:
            carried = share * sink_value.to(lse)
            out = out + carried.to(y)
            handed = y + (carried * (1 - share)).to(y) if is_added else out
        ctx.save_for_backward(query, key, value, handed, lse if is_added else total, share, sink_value, mask)
        ctx.is_added, ctx.is_causal, ctx.scale, ctx.dtype = is_added, is_causal, scale, logit.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, handed, lse, share, sink_value, mask = ctx.saved_tensors
        grad = grad.to(handed)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, handed, lse, 0.0, ctx.is_causal, attn_mask=mask, scale=ctx.scale
        )
        wide, gain, d_value = grad.to(lse), torch.zeros_like(lse), None
        if sink_value is not None:
            gain = (wide * sink_value.to(lse)).sum(-1)
            d_value = (share * wide).to(sink_value)
        # The sink's own weight pulls at its logit as a token's does; added to the rest it only has 1 - p' to pull with.
        gain = gain * (1 - share[..., 0]) if ctx.is_added else gain - (wide * handed.to(lse)).sum(-1)
        d_logit = (share[..., 0] * gain).to(ctx.dtype)
        return dq, dk, dv, d_logit, d_value, None, None, None, None


def _by_flex(
    query: Tensor, key: Tensor, value: Tensor, sink: Sink, *, is_causal: bool, scale: float | None
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
    share = torch.sigmoid(sink.logit.to(lse) - lse)[..., None]
    out = y if sink.is_added else (1 - share) * y
    out = out if sink.value is None else out + share * sink.value
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
    sink = sink.spread(query)
    weights = torch.cat([shown, sink.logit[..., None].to(shown)], dim=-1).softmax(-1).to(value.dtype)
    out = (shown.softmax(-1).to(value.dtype) if sink.is_added else weights[..., :-1]) @ value
    return out if sink.value is None else out + weights[..., -1:] * sink.value.to(value.dtype)


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
