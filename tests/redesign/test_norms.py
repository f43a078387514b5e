"""Norms and learned positions of the decoder against their formulas and PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerry.errors import BadTokens
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.norms import make_norm, norms
from skerry.redesign.positions import Learned, Places

X = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4


def shaken(name, **options):
    torch.manual_seed(0)
    norm = make_norm(name, 16, 1e-6, **options).double()
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return norm


def test_norms_are_their_formulas():
    mean_square = X.square().mean(-1, keepdim=True)
    for name in ("rmsnorm", "sandwich", "single-rms"):
        norm = shaken(name)
        torch.testing.assert_close(norm(X), X / (mean_square + 1e-6).sqrt() * norm.weight, atol=1e-12, rtol=0)
    norm = shaken("layernorm")
    centred = X - X.mean(-1, keepdim=True)
    torch.testing.assert_close(
        norm(X),
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias,
        atol=1e-12,
        rtol=0,
    )
    norm = shaken("dyt", alpha=0.7)
    torch.testing.assert_close(norm(X), (norm.alpha * X).tanh() * norm.weight + norm.bias, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [n for n in norms() if n != "dyt"])
def test_a_new_norm_writes_a_mean_square_of_one(name):
    out = make_norm(name, 16, 0.0).double()(X)
    expected = torch.ones(3, 5, dtype=torch.float64)
    torch.testing.assert_close(out.square().mean(-1), expected, atol=1e-12, rtol=0)


def test_rmsnorm_is_that_of_pytorch_and_single_rms_has_one_gain():
    ours, theirs = shaken("rmsnorm"), nn.RMSNorm(16, eps=1e-6).double()
    theirs.weight = ours.weight
    torch.testing.assert_close(ours(X), theirs(X), atol=1e-12, rtol=0)
    assert shaken("single-rms").weight.shape == (1,)


def test_dyt_is_linear_for_a_small_alpha_and_bounded_for_all():
    small = make_norm("dyt", 16, 0.0, alpha=1e-6).double()
    torch.testing.assert_close(small(X) / small.alpha, X, atol=1e-9, rtol=0)
    assert make_norm("dyt", 16, 0.0).double()(X * 1e6).abs().max() <= 1


def test_a_sandwich_norms_what_is_added():
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, norm="sandwich"
    )
    block = DecoderForCausalLM(config).model.layers[0].double()
    with torch.no_grad():
        block.mlp.down_proj.weight.zero_()
        block.self_attn.o_proj.weight.mul_(1e3)
        x = torch.randn(2, 4, 16, dtype=torch.float64)
        added = block(x, rotation=None, mask=None, cache=None) - x
    # An output of attention of any size is added with a mean square of one.
    torch.testing.assert_close(
        added.square().mean(-1), torch.ones(2, 4, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_a_wider_output_of_attention_adds_no_more_in_a_sandwich():
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, norm="sandwich"
    )
    model = DecoderForCausalLM(config).double().eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        for p in model.model.layers[0].mlp.parameters():
            p.zero_()
        model.model.layers[0].self_attn.o_proj.weight.mul_(1e3)
        before = model(ids).logits
        model.model.layers[0].self_attn.o_proj.weight.mul_(1e3)
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-4)


def test_learned_positions_count_no_padding_and_end_where_they_end():
    table = Learned(6, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    got = table(Places.of(0, 5, mask))
    assert torch.equal(got[0, 2:], table.weight[:3]) and torch.equal(got[1], table.weight[:5])
    assert torch.equal(table(Places.of(3, 5, mask))[0], table.weight[1:3])
    assert torch.equal(table(Places.of(1, 3, None))[0], table.weight[1:3])
    with pytest.raises(BadTokens, match=r"a sequence of 7 tokens; learned positions end at 6"):
        table(Places.of(0, 7, None))
