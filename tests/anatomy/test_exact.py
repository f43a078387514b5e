"""A float64 forward that leaves the model as it is."""

import copy

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.exact import exact, run_float64


@pytest.mark.parametrize("name", zoo.NAMES)
def test_one_block_at_a_time_gives_what_the_whole_model_in_float64_gives(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    streamed = run_float64(anatomy, ids)
    assert streamed.dtype == torch.float64
    assert torch.equal(streamed, run_float64(anatomy, ids, whole=True))
    assert all(v.dtype == torch.float32 and torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        single = (model.base_model if hasattr(model, "base_model") else model)(ids)[0]
    assert float((streamed - single).abs().max() / single.abs().max()) < 2e-6


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "gpt2"])
def test_logits_are_float64_too(name):
    model = zoo.tiny(name)
    ids, _ = zoo.tokens(model)
    logits = run_float64(resolve(model), ids, logits=True)
    with torch.no_grad():
        assert float((logits - model(ids).logits).abs().max()) < 1e-4
    assert logits.dtype == torch.float64


def test_norms_stay_in_float64_where_a_plain_float64_model_rounds_to_float32():
    """RMSNorm casts to float32 inside: a scaled gain and its undone scale show it."""
    model = zoo.tiny("llama", dtype=torch.float64)
    ids, _ = zoo.tokens(model)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for layer in scaled.model.layers:
            layer.input_layernorm.weight.mul_(1.7)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight.div_(1.7)
        # The norm reads a stream of other sizes: where its square is rounded, the results differ by float32.
        plain = model(ids).logits
        with exact():
            inside, other = model(ids).logits, scaled(ids).logits
    assert float((inside - other).abs().max()) < 1e-12
    assert 1e-9 < float((inside - plain).abs().max()) < 1e-4


def test_what_a_change_adds_or_writes_is_gone_afterwards():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def change(layer):
        if layer is not None:
            projection = model.model.layers[layer].self_attn.o_proj
            projection.bias = torch.nn.Parameter(torch.ones(32, dtype=torch.float64))
            projection.weight.data.zero_()

    changed = run_float64(anatomy, ids, change=change)
    assert not torch.allclose(changed, run_float64(anatomy, ids))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_error_inside_leaves_the_model_whole():
    model = zoo.tiny("gpt2")
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def fail(layer):
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        run_float64(resolve(model), zoo.tokens(model)[0], change=fail)
    assert all(
        v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )
