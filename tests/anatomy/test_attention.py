"""Attention as the softmax sees it, against the attentions that transformers' eager implementation reports."""

import math
from dataclasses import replace

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from skerry.anatomy import AttentionView, Site, capture, resolve, watch
from skerry.anatomy.attention import naive_logits, naive_probs, observe_attention, uses_interface
from skerry.anatomy.model import run

every_family = pytest.mark.parametrize("name", zoo.NAMES)
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
# Architectures that transformers does not run on scaled_dot_product_attention.
EAGER_ONLY = {"bloom", "gptj", "mpnet", "gemma2", "gpt_oss"}
OWN_SOFTMAX = {"bloom", "gptj", "mpnet", "falcon_rw", "falcon_7b", "falcon_40b", "falcon_11b"}


def kept(look, probs):
    """The rows of the queries that are no padding, [row, head, key]."""
    return probs.transpose(1, 2)[look.keep]


@every_family
@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_probabilities_are_what_output_attentions_reports(look, name, padding):
    if name == "mpnet" and padding == "left":
        pytest.skip("its position ids count the padding")
    seen = look(name, padding)
    assert len(seen.attentions) == len(seen.layers) == len(seen.views)
    for layer in seen.layers:
        told, probs = seen.attentions[layer].double(), naive_probs(seen.views[layer]).double()
        assert_close(kept(seen, probs), kept(seen, told), **CLOSE)
        shown = seen.at(layer, "attn.probs").double()
        assert_close(kept(seen, shown), kept(seen, probs), **CLOSE)


@pytest.mark.parametrize("name", [n for n in zoo.NAMES if n not in EAGER_ONLY])
@pytest.mark.parametrize("padding", [None, "right"])
def test_under_sdpa_the_probabilities_are_those_of_the_eager_model(look, name, padding):
    seen = look(name, padding, "sdpa")
    if name == "falcon_rw":  # transformers adds the distance biases twice in its eager form, once under sdpa
        for layer in seen.layers:
            value = seen.heads(seen.at(layer, "attn.v"))
            mixed = naive_probs(seen.views[layer]).double() @ value
            mix = seen.heads(seen.at(layer, "attn.mix"))
            assert_close(kept(seen, mix), kept(seen, mixed), **CLOSE)
        return
    eager = look(name, padding)
    for layer in seen.layers:
        probs = naive_probs(seen.views[layer]).double()
        assert_close(kept(seen, probs), kept(seen, eager.attentions[layer].double()), **CLOSE)


@every_family
def test_the_two_ways_in_are_chosen_by_the_architecture(look, name):
    seen = look(name)
    assert uses_interface(seen.model) == (name not in OWN_SOFTMAX)
    for view in seen.views.values():
        assert (view.logits is not None) == (name in OWN_SOFTMAX)
        assert (view.query is None) == (view.logits is not None)


@every_family
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_views_hold_grouped_keys_and_every_value_vector(look, name, attention):
    if attention == "sdpa" and name in EAGER_ONLY:
        pytest.skip("eager only")
    seen = look(name, None, attention)
    dims, (samples, length) = seen.anatomy.dims, seen.ids.shape
    for layer, view in seen.views.items():
        assert view.num_heads == dims.num_heads
        assert view.value.shape == (samples, dims.num_kv_heads, length, dims.head_dim)
        value = seen.at(layer, "attn.v")
        limit = getattr(seen.anatomy.config, "clip_qkv", None)
        value = value if limit is None else value.clamp(-limit, limit)
        assert_close(view.value, seen.heads(value), rtol=0, atol=0)
        if view.query is not None:
            assert view.query.shape == (samples, dims.num_heads, length, dims.head_dim)
            assert view.key.shape == (samples, dims.num_kv_heads, length, dims.head_dim)


def test_masked_logits_are_minus_infinity_and_no_other(look):
    for name in ("llama", "bloom", "gptj", "falcon_rw", "bert", "mpnet"):
        seen = look(name, "right")
        causal = name not in zoo.ENCODERS
        for layer in seen.layers:
            logits = seen.at(layer, "attn.logits")
            length = logits.shape[-1]
            visible = seen.keep[:, None, None, :].expand(logits.shape).clone()
            if causal:
                visible &= torch.ones(length, length, dtype=torch.bool).tril()
            hidden = torch.isneginf(logits)
            assert torch.equal(kept(seen, hidden), kept(seen, ~visible)), name


def test_a_sliding_window_hides_what_lies_before_it(look):
    seen = look("mistral")
    probs = seen.at(0, "attn.probs")
    for query in range(probs.shape[-1]):
        seen_keys = (probs[0, 0, query] > 0).nonzero().flatten()
        assert seen_keys.tolist() == list(range(max(0, query - 3), query + 1))


def test_a_learned_sink_takes_mass_that_no_key_gets(look):
    seen = look("gpt_oss")
    for layer in seen.layers:
        view = seen.views[layer]
        assert_close(view.sink_logits, seen.weight(layer, "w.sink"), rtol=0, atol=0)
        logits = naive_logits(view)
        total = logits.exp().sum(-1) + view.sink_logits.exp()[:, None]
        assert_close(1 - naive_probs(view).sum(-1), view.sink_logits.exp()[:, None] / total, **CLOSE)
        assert (naive_probs(view).sum(-1) < 1).all()


def test_soft_caps_are_applied_before_the_mask(look):
    view = look("gemma2").views[0]
    assert view.softcap == 2.0
    logits = naive_logits(view)
    assert logits[torch.isfinite(logits)].abs().max() < 2.0
    assert naive_logits(replace(view, softcap=None)).abs().nan_to_num(posinf=0).max() > 1.0


def test_a_family_with_few_keys_for_many_queries_expands_them_by_groups():
    query = torch.randn(1, 4, 3, 8)
    key = torch.randn(1, 2, 3, 8)
    view = a_view(query=query, key=key)
    expected = torch.stack([query[0, h] @ key[0, h // 2].T for h in range(4)])[None] * 8**-0.5
    assert_close(naive_logits(view), expected)


@given(st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_bool_and_additive_masks_mean_the_same(length, is_causal, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 2, 2, length, 4, generator=generator, dtype=torch.float64)
    visible = torch.rand(2, 1, length, length, generator=generator) > 0.3
    for lowest in (-math.inf, torch.finfo(torch.float64).min, -1e9, -1e4):
        additive = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, lowest)
        a = naive_probs(a_view(query=query, key=key, mask=visible, is_causal=is_causal))
        b = naive_probs(a_view(query=query, key=key, mask=additive, is_causal=is_causal))
        assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def a_view(query=None, key=None, mask=None, *, is_causal=False, logits=None):
    heads = query.shape[1] if logits is None else logits.shape[1]
    return AttentionView(
        layer=0,
        num_heads=heads,
        scale=1.0 if query is None else query.shape[-1] ** -0.5,
        softcap=None,
        sink_logits=None,
        mask=mask,
        is_causal=is_causal,
        query=query,
        key=key,
        value=None,
        logits=logits,
    )


class Flat(nn.Module):
    """Attention that keeps samples and heads in one axis."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, q, k, v):
        if self.way == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        ways = {
            "functional": lambda: F.softmax(scores, dim=-1),
            "keyword": lambda: F.softmax(input=scores, dim=-1),
            "torch": lambda: torch.softmax(scores, -1),
            "method": lambda: scores.softmax(-1),
            "module": lambda: nn.Softmax(dim=-1)(scores),
        }
        return ways[self.way]() @ v


@pytest.mark.parametrize("way", ["functional", "keyword", "torch", "method", "module", "sdpa"])
def test_heads_and_samples_in_one_axis_are_told_apart(way):
    module, views = Flat(way), []
    q, k, v = torch.randn(3, 2 * 4, 5, 8)
    plain = module(q, k, v)
    with observe_attention(module, {0: module}, views.append, num_heads=4):
        assert torch.equal(module(q, k, v), plain)
    (view,) = views
    expected = (q @ k.transpose(1, 2) * 8**-0.5).softmax(-1).reshape(2, 4, 5, 5)
    assert_close(naive_probs(view), expected)
    module(q, k, v)
    assert len(views) == 1


def test_a_softmax_that_is_no_attention_is_left_alone():
    module, views = nn.Softmax(dim=-1), []
    with observe_attention(module, {0: module}, views.append, num_heads=4):
        module(torch.randn(3, 7))
        module(torch.randn(3, 5, 5))  # no multiple of four heads
    assert views == []


def test_attention_modules_that_nobody_watches_compute_as_before(tiny_model):
    """Only layer 1 is observed; layer 0 shares its configuration and so passes through the same door."""
    model = tiny_model("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    plain = run(anatomy, ids).last_hidden_state
    layers = []
    with observe_attention(model, {1: anatomy.attention[1]}, lambda view: layers.append(view.layer)):
        assert torch.equal(run(anatomy, ids).last_hidden_state, plain)
    assert layers == [1]


def test_a_kernel_that_wants_other_masks_is_stood_in_for_by_sdpa(tiny_model):
    """flex and flash attention read masks of other kinds than the door asks for."""
    model = tiny_model("llama", attention="sdpa")
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, padding="right")
    plain = run(anatomy, ids, keep).last_hidden_state
    model.config._attn_implementation_internal = "flex_attention"
    layers = []
    with watch(anatomy, on_attention=lambda view: layers.append(view.layer)):
        under = run(anatomy, ids, keep).last_hidden_state
    assert model.config._attn_implementation == "flex_attention"
    assert layers == [0, 1]
    assert_close(under[keep], plain[keep])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "falcon_40b", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_show_their_attention(tiny_model, name, dtype):
    model = tiny_model(name, dtype=dtype)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    probs = capture(anatomy, ids, ["attn.probs"])[Site(0, "attn.probs")]
    assert_close(probs.sum(-1), torch.ones_like(probs.sum(-1)), rtol=1e-2, atol=1e-2)
