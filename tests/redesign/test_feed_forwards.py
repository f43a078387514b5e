"""Feed-forward layers against their formulas."""

from __future__ import annotations

import pytest
import torch

from skerry.redesign.config import DecoderConfig
from skerry.redesign.feed_forwards import feed_forwards, make_feed_forward

X = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    return make_feed_forward(name, 16, 24).to(dtype)


def test_feed_forwards_are_their_formulas():
    for name in ("swiglu", "smooth-swiglu"):
        layer = made(name).eval()
        gate, up = X @ layer.gate_proj.weight.T, X @ layer.up_proj.weight.T
        truth = (gate * gate.sigmoid() * up) @ layer.down_proj.weight.T
        torch.testing.assert_close(layer(X), truth, atol=1e-12, rtol=0)
    layer = made("gelu")
    up = X @ layer.up_proj.weight.T
    gelu = up * (1 + torch.erf(up / 2**0.5)) / 2
    torch.testing.assert_close(layer(X), gelu @ layer.down_proj.weight.T, atol=1e-12, rtol=0)
    layer = made("relu2")
    squared = (X @ layer.up_proj.weight.T).clamp(min=0) ** 2
    torch.testing.assert_close(layer(X), squared @ layer.down_proj.weight.T, atol=1e-12, rtol=0)


def test_smooth_swiglu_rounds_to_three_bits_in_training_and_passes_the_gradient_through():
    layer, plain = made("smooth-swiglu").train(), made("swiglu")
    seen = {}
    layer.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(rounded=args[0]))
    plain.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(exact=args[0]))
    ours, truth = layer(X), plain(X)
    error = (seen["rounded"] - seen["exact"]).abs()
    # Half of the last of 3 bits, or half the smallest step (2^-9 of a scale that sends the channel's largest to 448).
    step = seen["exact"].abs().flatten(0, 1).amax(0) / 448 * 2**-10
    assert (error <= torch.maximum(seen["exact"].abs() * 2**-4, step) * (1 + 1e-5)).all() and error.max() > 0
    # Through the rounding, the gradient of what is rounded is that of SwiGLU.
    direction = torch.randn_like(truth)
    for name in ("gate_proj", "up_proj"):
        mine = torch.autograd.grad((ours * direction).sum(), getattr(layer, name).weight, retain_graph=True)
        other = torch.autograd.grad((truth * direction).sum(), getattr(plain, name).weight, retain_graph=True)
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_one_channel_of_outliers_does_not_coarsen_the_others():
    layer = made("smooth-swiglu", torch.float32).train()
    with torch.no_grad():
        layer.up_proj.weight[3] *= 1e6
    seen = {}
    layer.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(rounded=args[0]))
    x = X.float()
    layer(x)
    exact = torch.nn.functional.silu(layer.gate_proj(x)) * layer.up_proj(x)
    others = torch.arange(24) != 3
    error = (seen["rounded"] - exact)[..., others].norm() / exact[..., others].norm()
    assert torch.isfinite(seen["rounded"]).all() and error < 0.05


@pytest.mark.parametrize("name", feed_forwards())
def test_the_default_width_gives_every_feed_forward_about_as_many_parameters(name):
    config = DecoderConfig(hidden_size=384, feed_forward=name)
    size = sum(p.numel() for p in make_feed_forward(name, 384, config.intermediate_size).parameters())
    assert size == 8 * 384 * 384
