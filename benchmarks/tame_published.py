"""The published search of Outlier Suppression+, written plainly: what our search is compared with.

Wei et al. 2023 (arXiv 2304.09145), section 4. For every norm before linear maps, on one batch:

    z = (max + min) / 2                                     where the norm and the maps have biases; else 0
    for t from max|x - z| down to 1 in K = max(100, max|x - z| / 0.5) equal steps:
        s = max(1, (max - z) / t, (z - min) / t)            channel by channel
        loss = |f(Q((x - z) / s), Q(W s), b + W z) - f(x, W, b)|^2 per token
    keep the s of the smallest loss

f is the consumer: attention up to its output projection for q, k and v, the gated product for gate and up, the map itself for a plain feed-forward.
Every threshold is one quantized forward of the consumer over the whole batch. Q rounds weights to 8 bits per row and inputs to 8 bits per token.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

STEPS, STEP, LOWEST = 100, 0.5, 1.0


@dataclass
class Consumer:
    """A norm, the maps that read it, and what is made of them."""

    name: str
    norm: nn.Module
    readers: list[nn.Linear]
    module: nn.Module
    last: nn.Module | None
    x: Tensor | None = None
    call: tuple[Any, Any] | None = None
    wanted: Tensor | None = None
    tried: int = 0
    found: tuple[Tensor | None, Tensor] | None = field(default=None)

    @property
    def can_shift(self) -> bool:
        biases = [getattr(self.norm, "bias", None), *(r.bias for r in self.readers)]
        return all(b is not None for b in biases)


class _ReachedError(Exception):
    pass


def consumers_of(model: nn.Module) -> list[Consumer]:
    """Norms and consumers of a Llama or an OPT."""
    found = []
    if type(model).__name__ == "LlamaForCausalLM":
        for i, block in enumerate(model.model.layers):
            a, m = block.self_attn, block.mlp
            found.append(
                Consumer(f"{i}.norm.attn", block.input_layernorm, [a.q_proj, a.k_proj, a.v_proj], a, a.o_proj)
            )
            found.append(
                Consumer(
                    f"{i}.norm.mlp", block.post_attention_layernorm, [m.gate_proj, m.up_proj], m, m.down_proj
                )
            )
        return found
    for i, block in enumerate(model.model.decoder.layers):
        a = block.self_attn
        found.append(
            Consumer(
                f"{i}.norm.attn", block.self_attn_layer_norm, [a.q_proj, a.k_proj, a.v_proj], a, a.out_proj
            )
        )
        found.append(Consumer(f"{i}.norm.mlp", block.final_layer_norm, [block.fc1], block.fc1, None))
    return found


@torch.inference_mode()
def watch(model: nn.Module, consumers: list[Consumer], ids: Tensor) -> None:
    """One forward of the float model: what every norm gives and every consumer is called with and makes."""
    with ExitStack() as stack:
        for c in consumers:
            stack.callback(c.norm.register_forward_hook(_keep(c, "x")).remove)
            stack.callback(c.module.register_forward_pre_hook(_keep_call(c), with_kwargs=True).remove)
            if c.last is None:
                stack.callback(c.module.register_forward_hook(_keep(c, "wanted")).remove)
            else:
                stack.callback(c.last.register_forward_pre_hook(_keep_input(c)).remove)
        model(ids, use_cache=False, logits_to_keep=1)


def _keep(c: Consumer, name: str) -> Any:
    return lambda _m, _a, out: setattr(c, name, out)


def _keep_input(c: Consumer) -> Any:
    return lambda _m, args: setattr(c, "wanted", args[0])


def _keep_call(c: Consumer) -> Any:
    def keep(_m: Any, args: Any, kwargs: Any) -> None:
        c.call = (args, kwargs)

    return keep


def rounded(x: Tensor) -> Tensor:
    """To 8 bits and back, one symmetric grid per row."""
    step = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127.5
    return (x / step).round().clamp(-128, 127) * step


@torch.inference_mode()
def loss(c: Consumer, shift: Tensor | None, scale: Tensor) -> float:
    """Squared error per token of the quantized consumer."""
    assert c.call is not None and c.wanted is not None and c.x is not None
    old = [(r, r.weight, r.bias) for r in c.readers]
    x = c.x if shift is None else c.x - shift
    read = rounded(x / scale)
    got: list[Tensor] = []
    with ExitStack() as stack:
        for r, weight, bias in old:
            r.weight = nn.Parameter(rounded(weight * scale), requires_grad=False)
            if shift is not None:
                r.bias = nn.Parameter(bias + weight @ shift, requires_grad=False)
            stack.callback(r.register_forward_pre_hook(lambda _m, _a: (read,)).remove)
        if c.last is not None:

            def stop(_m: Any, args: Any) -> None:
                got.append(args[0])
                raise _ReachedError

            stack.callback(c.last.register_forward_pre_hook(stop).remove)
        try:
            out = c.module(*c.call[0], **c.call[1])
            got.append(out)
        except _ReachedError:
            pass
        finally:
            for r, weight, bias in old:
                r.weight, r.bias = weight, bias
    return float((got[0] - c.wanted).float().pow(2).sum(-1).mean())


def search(c: Consumer) -> None:
    """The threshold with the smallest loss, of all."""
    assert c.x is not None
    flat = c.x.flatten(0, -2)
    low, high = flat.amin(0), flat.amax(0)
    shift = (low + high) / 2 if c.can_shift else None
    if shift is not None:
        low, high = low - shift, high - shift
    largest = float(torch.maximum(high, -low).max())
    steps = max(STEPS, int(largest / STEP))
    best = float("inf")
    for k in range(steps):
        t = largest - k * (largest - LOWEST) / steps
        scale = torch.maximum(high / t, -low / t).clamp_min(1.0)
        here = loss(c, shift, scale)
        c.tried += 1
        if here < best:
            best, c.found = here, (shift, scale)


def run(model: nn.Module, ids: Tensor) -> tuple[list[Consumer], float]:
    """All norms of a model on one batch, and the seconds that it took."""
    start = time.perf_counter()
    consumers = consumers_of(model)
    watch(model, consumers, ids)
    for c in consumers:
        search(c)
    return consumers, time.perf_counter() - start
