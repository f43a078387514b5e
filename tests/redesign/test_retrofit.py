"""Folding the first token: exact, refused by name where it cannot be, and what the cheaper forms can cost at most."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.corpus.batch import Batch
from skerry.errors import NotPossible, UnknownOption
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.retrofit import RetrofitOptions, fold_first_token
from skerry.redesign.retrofit_bound import bound_rows, bounds_of
from skerry.redesign.retrofit_fit import EXACT_FORM, FORMS, Fitter, fit_logit
from skerry.redesign.retrofit_fold import first_token, fold, sink_constants
from skerry.redesign.retrofit_read import Heads, read_heads
from skerry.redesign.retrofit_source import as_decoder

BOS = 1
SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def small(seed=0, **choices):
    torch.manual_seed(seed)
    return DecoderForCausalLM(
        DecoderConfig(**{**SMALL, "initializer_range": 0.2, "rope_theta": 100.0, **choices})
    ).eval()


def inputs(count=4, length=16, vocab=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab, (count, length), generator=generator)
    ids[:, 0] = BOS
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(count))


def folded(model):
    return fold(as_decoder(resolve(model)), sink_constants(resolve(model), BOS))


@pytest.mark.parametrize(
    "choices", [{}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1, "tie_word_embeddings": False}]
)
def test_folded_logits_are_the_original_ones_behind_the_first_token(choices):
    model = small(**choices).double()
    ids = inputs().input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            folded(model)(ids[:, 1:]).logits, model(ids).logits[:, 1:], atol=1e-10, rtol=1e-10
        )


def test_every_earlier_step_of_a_generation_with_the_cache_is_the_original_one():
    model = small().double()
    new = folded(model)
    ids = inputs(count=1, length=5).input_ids
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert new.generate(ids[:, 1:], max_new_tokens=8, do_sample=False).tolist() == plain[:, 1:].tolist()


def test_a_llama_of_transformers_is_folded_and_stays_as_it_is():
    model = zoo.tiny("llama")
    before = copy.deepcopy(model.state_dict())
    batch = inputs(vocab=model.config.vocab_size)
    found = fold_first_token(resolve(model), [batch])
    assert found.token == BOS and found.float64 <= 1e-10 and found.stored <= found.bound
    with torch.no_grad():
        torch.testing.assert_close(
            found.model(batch.input_ids[:, 1:]).logits,
            model(batch.input_ids).logits[:, 1:],
            atol=2e-5,
            rtol=1e-4,
        )
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    found.model.model.embed_tokens.weight.data.zero_()
    assert torch.equal(model.state_dict()["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_the_folded_configuration_says_what_it_is():
    new = folded(small(bos_token_id=BOS, max_position_embeddings=128))
    assert new.config.attention == "kv-bias" and new.config.folded_token == BOS
    assert new.config.bos_token_id is None and new.config.max_position_embeddings == 127


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "opt", "bert", "qwen3"])
def test_architectures_of_another_shape_are_refused_by_name_and_stay_as_they_are(name):
    model = zoo.tiny(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotPossible, match=type(model).__name__) as error:
        as_decoder(resolve(model))
    words = str(error.value)
    assert any(w in words for w in ("no place for", "configuration has no", "does not predict"))
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_stretched_positions_are_refused():
    model = zoo.tiny("llama")
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(NotPossible, match="stretches its rotary positions"):
        as_decoder(resolve(model))


def test_a_model_that_computes_something_else_with_the_same_parameters_is_refused():
    model = zoo.tiny("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    with pytest.raises(NotPossible, match="computes something else"):
        as_decoder(resolve(model))


def test_another_attention_is_refused():
    with pytest.raises(NotPossible, match="'scaled' attention already"):
        as_decoder(resolve(small(attention="scaled")))


def test_inputs_that_begin_with_several_tokens_are_refused():
    batch = inputs()
    batch.input_ids[0, 0] = 7
    with pytest.raises(NotPossible, match="begin with 2 different tokens"):
        first_token([batch])


def test_the_constants_are_those_of_any_input():
    """Of a model that the decoder cannot hold, too: keys and values of the first token hang on nothing behind it."""
    model = zoo.tiny("gpt2")
    constants = sink_constants(resolve(model), BOS)
    batch = inputs(vocab=model.config.vocab_size)
    from skerry.anatomy.watch import watch

    seen = {}
    with torch.no_grad(), watch(resolve(model), (), on_attention=lambda v: seen.update({v.layer: v})):
        model(batch.input_ids)
    for layer, view in seen.items():
        for key, value in zip(view.key[:, :, 0], view.value[:, :, 0], strict=True):
            torch.testing.assert_close(key, constants.keys[layer], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(value, constants.values[layer], atol=1e-5, rtol=1e-5)


def blind(**choices):
    """Queries of zero: every logit is 0, so the folded token's share is 1 / (1 + number of other keys)."""
    model = small(**choices).double()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    return model


def test_where_the_sink_does_not_depend_on_the_query_one_logit_is_exact():
    model, batch = blind(), inputs(count=8)
    fitter = Fitter(folded(model)).read([batch.behind(1)])
    shares = fitter.sums[0].p
    torch.testing.assert_close(shares[:15, 0], 1 / torch.arange(2, 17, dtype=torch.float64))
    new = fitter.make("sink-value")
    assert float(new.model.layers[0].self_attn.variant.sinks.detach().abs().max()) < 1e-4
    with torch.no_grad():
        expected = model(batch.input_ids).logits[:, 1:]
        error = (new(batch.input_ids[:, 1:]).logits - expected).norm() / expected.norm()
    assert float(error) < 1e-4


def test_where_the_value_is_nothing_too_a_sink_logit_is_exact():
    model, batch = blind(num_hidden_layers=1), inputs(count=8)
    block = model.model.layers[0]
    x = block.input_layernorm(model.model.embed_tokens.weight[BOS].detach())
    w = block.self_attn.v_proj.weight.data
    w -= torch.outer(w @ x, x) / (x @ x)
    new = Fitter(folded(model)).read([batch.behind(1)]).make("sink-logit")
    with torch.no_grad():
        expected = model(batch.input_ids).logits[:, 1:]
        error = (new(batch.input_ids[:, 1:]).logits - expected).norm() / expected.norm()
    assert float(error) < 1e-4


def test_the_fitted_logit_is_the_best_of_a_fine_grid():
    fitter = Fitter(folded(small())).read([inputs(count=8).behind(1)])
    for valued in (True, False):
        sums = fitter.sums[1]
        best = fit_logit(sums, valued=valued)
        least = sums.error(torch.sigmoid(best - sums.lse), valued=valued).sum(0)
        for s in torch.linspace(-8, 8, 200):
            assert (sums.error(torch.sigmoid(s - sums.lse), valued=valued).sum(0) >= least * (1 - 1e-3)).all()


def test_a_gate_comes_nearer_than_no_sink_at_all():
    fitter = Fitter(folded(small())).read([inputs(count=16, length=24).behind(1)])
    new = fitter.make("gate")
    for layer, sums in fitter.sums.items():
        gate = new.model.layers[layer].self_attn.variant.gate
        share = 1 - torch.sigmoid(sums.x @ gate.weight.detach().T + gate.bias.detach())
        none = sums.error(torch.zeros_like(sums.p), valued=False).sum(0)
        assert (sums.error(share, valued=False).sum(0) < none).all()


@pytest.mark.parametrize("form", [f for f in FORMS if f != EXACT_FORM])
def test_what_is_measured_is_what_the_decoder_does_with_exact_inputs(form):
    """The layer's error by the formula, against the first layer of the cheaper decoder itself: its inputs are exact."""
    new = folded(small().double())
    batch = inputs(count=8).behind(1)
    cheaper = Fitter(new).read([batch]).make(form)
    seen = {}
    for name, model in (("exact", new), (form, cheaper)):
        block = model.model.layers[0].self_attn
        handle = block.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
        with torch.no_grad():
            model(batch.input_ids)
        handle.remove()
    row = next(r for r in bound_rows(new, {form: cheaper}, [batch]) if r["layer"] == 0)
    expected = (seen[form] - seen["exact"]).norm() / seen["exact"].norm()
    assert row["measured"] == pytest.approx(float(expected), rel=1e-6)
    assert row["tokens_over_bound"] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([f for f in FORMS if f != EXACT_FORM]),
    st.floats(0.01, 30),
    st.floats(0.01, 30),
)
def test_no_error_is_above_its_bound(seed, form, logit_size, value_size):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, size=1.0):
        return size * torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads = Heads(0, draw(5, 8), draw(5, 2, size=logit_size), draw(5, 2, size=logit_size), draw(5, 2, 4))
    variant = torch.nn.Module()
    variant.sinks, variant.gate = draw(2, size=logit_size), torch.nn.Linear(8, 2).double()
    found = bounds_of(heads, variant, form, draw(2, 4, size=value_size), draw(8, 8))
    assert (found.error <= found.bound * (1 + 1e-9)).all()
    if found.wide is not None and form == "sink-value":
        assert (found.bound <= found.wide * (1 + 1e-9)).all()
    assert (found.wide is None) == (form == "gate")


def test_reading_gives_shares_and_outputs_of_the_original_attention():
    model, batch = small().double(), inputs()
    seen: dict[int, Heads] = {}
    read_heads(resolve(folded(model)), [batch.behind(1)], lambda h: seen.update({h.layer: h}))
    from skerry.anatomy.attention import naive_probs
    from skerry.anatomy.watch import watch

    views = {}
    with torch.no_grad(), watch(resolve(model), (), on_attention=lambda v: views.update({v.layer: v})):
        model(batch.input_ids)
    for layer, view in views.items():
        probs = naive_probs(view)[:, :, 1:, 0].transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(seen[layer].p, probs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": "sink-logits"},
        {"schemes": ("w9x",)},
        {"inputs": 0},
        {"ratio": 1.0},
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(wrong):
    with pytest.raises(UnknownOption):
        RetrofitOptions(**wrong).check()
