"""The reference decoder against LLaMA of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from skerry.anatomy import resolve
from skerry.redesign.attend import Sink, attend, attend_eagerly
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM

SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def small(**choices):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**{**SMALL, **choices})).eval()


@pytest.mark.parametrize("grouped", [None, 2])
def test_a_decoder_with_the_choices_of_llama_is_saved_as_llama(tmp_path, grouped):
    ours = small(num_key_value_heads=grouped)
    ours.save_pretrained(tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 100, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(
            ours(ids, labels=ids).loss, theirs(ids, labels=ids).loss, atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("attention", ["softmax", "scaled", "sink-logit"])
def test_generation_with_the_cache_gives_what_it_gives_without(attention):
    model = small(attention=attention)
    ids = torch.randint(0, 100, (2, 5))
    plain = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
    cached = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True)
    assert plain.tolist() == cached.tolist()


def test_padding_on_the_left_changes_no_logits():
    model = small(position="none")
    ids = torch.randint(0, 100, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        torch.testing.assert_close(model(padded, mask).logits[:, 3:], model(ids).logits, atol=2e-6, rtol=1e-5)


def test_anatomy_names_the_places_of_the_decoder():
    anatomy = resolve(small(attention="sink-logit"))
    assert sorted(anatomy.attention) == [0, 1] and not anatomy.unplaced


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_sink_kernel_has_the_values_and_gradients_of_the_definition(per_query, valued, groups):
    torch.manual_seed(1)
    double = {"dtype": torch.float64, "requires_grad": True}
    q = torch.randn(2, 4, 9, 8, **double)
    k, v = (torch.randn(2, 4 // groups, 9, 8, **double) for _ in range(2))
    logit = torch.randn((2, 4, 9) if per_query else (4,), **double)
    carried = torch.randn(4, 8, **double) if valued else None
    inputs = [x for x in (q, k, v, logit, carried) if x is not None]
    weight = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    fast = attend(q, k, v, sink=Sink(logit, carried))
    wide = (x.repeat_interleave(groups, 1) for x in (k, v))
    plain = attend_eagerly(q, *wide, None, is_causal=True, scale=None, sink=Sink(logit, carried))
    torch.testing.assert_close(fast, plain, atol=1e-12, rtol=0)
    for ours, truth in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((plain * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda *x: attend(*x[:3], sink=Sink(x[3], carried)), (q, k, v, logit))
