"""The way through float32 that attention takes in a bfloat16 training on the CPU."""

import pytest
import torch

from skerry.redesign.attend import Sink, attend


@pytest.mark.parametrize("has_sink", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_short_sequences_train_through_float32_and_are_nearer_to_float64_than_bfloat16_is(has_sink, kv_heads):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 32, 8), (2, kv_heads, 32, 8), (2, kv_heads, 32, 8))
    wide = [torch.randn(*s, generator=generator).bfloat16() for s in shapes]
    sink = Sink(torch.zeros(4)) if has_sink else None
    exact = attend(*(x.double() for x in wide), sink=None if sink is None else Sink(sink.logit.double()))
    with torch.autocast("cpu", torch.bfloat16):
        trained = attend(*(x.clone().requires_grad_() for x in wide), sink=sink)
        read = attend(*wide, sink=sink)
    assert trained.dtype == read.dtype == torch.bfloat16
    # Rounded once, at the end.
    assert (
        torch.equal(trained, exact.bfloat16()) or (trained - exact).abs().max() <= 2**-8 * exact.abs().max()
    )
    assert (trained - exact).abs().mean() <= (read - exact).abs().mean()


def test_long_sequences_and_forwards_alone_use_the_kernel_as_it_is():
    generator = torch.Generator().manual_seed(0)
    for length, is_trained in ((300, True), (32, False)):
        x = torch.randn(1, 2, length, 8, generator=generator).bfloat16().requires_grad_(is_trained)
        kernel = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        assert torch.equal(attend(x, x, x), kernel)
