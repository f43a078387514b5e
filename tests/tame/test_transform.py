"""Transforms: proved before they are folded, exact on all families, undone bit for bit, refused when they change the model."""

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.find_seams import check_seams, declare_norm_seam, find_seams, random_change
from skerry.anatomy.seams import Seams
from skerry.errors import NotEquivalent
from skerry.tame.transform import (
    FLOAT32_BOUND,
    FLOAT64_BOUND,
    SeamChange,
    Transform,
    folded,
    outputs,
    relative_error,
    verify,
)

# The issue's list of architectures, and every other layout of the zoo.
ISSUE = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "cohere", "olmo2", "granite", "glm4", "stablelm", "starcoder2", "opt",
    "gpt2", "gpt_neox", "falcon_7b", "bloom", "mixtral", "qwen2_moe", "qwen3_moe", "bert",
]  # fmt: skip


def random_transform(seams, seed):
    generator = torch.Generator().manual_seed(seed)
    return Transform([SeamChange(s.name, **random_change(s, generator)) for s in seams])


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_change_of_all_seams_is_exact_before_folding_and_after(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    seams = check_seams(anatomy)
    ids, _ = zoo.tokens(model)
    before = outputs(anatomy, ids)
    transform = random_transform(seams, seed=5)
    assert transform.prove(anatomy, seams) <= FLOAT64_BOUND
    assert torch.equal(outputs(anatomy, ids), before)
    transform.fold(anatomy, seams)
    proof = verify(anatomy, before, ids)
    assert 0 < proof.stored <= FLOAT32_BOUND
    assert proof.dtype == "float32" and proof.num_tokens == ids.numel()


def test_the_issue_s_architectures_are_in_the_zoo_and_none_of_them_is_left_without_a_seam():
    assert set(ISSUE) <= set(zoo.NAMES)
    for name in ISSUE:
        assert len(check_seams(resolve(zoo.tiny(name)))) >= 2, name


@pytest.mark.parametrize("name", ["llama", "opt", "mixtral", "bert", "phi3", "gpt2"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_folded_change_is_undone_bit_for_bit(name, seed):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    seams = find_seams(anatomy)
    keys = list(model.state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with folded(anatomy, seams, random_transform(list(seams), seed).changes):
        assert any(k not in before or not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(model.state_dict()) == keys
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    ids, _ = zoo.tokens(model)
    assert torch.isfinite(outputs(anatomy, ids)).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_transform_survives_as_tensors(seed):
    seams = find_seams(resolve(zoo.tiny("llama")))
    transform = random_transform(list(seams), seed)
    again = Transform.from_state(transform.state())
    assert [c.seam for c in again.changes] == [c.seam for c in transform.changes]
    for a, b in zip(again.changes, transform.changes, strict=True):
        assert (a.shift is None) == (b.shift is None)
        assert a.shift is None or torch.equal(a.shift, b.shift)
        assert torch.equal(a.scale, b.scale)


def test_two_transforms_one_after_the_other_are_as_exact_as_one():
    model = zoo.tiny("opt")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    before = outputs(anatomy, ids)
    for seed in (1, 2):
        seams = check_seams(anatomy)
        transform = random_transform(list(seams), seed)
        transform.prove(anatomy, seams)
        transform.fold(anatomy, seams)
    assert verify(anatomy, before, ids).stored <= 2 * FLOAT32_BOUND


def test_a_transform_that_changes_the_model_is_refused_and_nothing_is_folded():
    model = zoo.tiny("gemma2")
    anatomy = resolve(model)
    at = "model.layers.1"
    # What the market leader does to Gemma 2: the wrong norm for gate and up.
    wrong = declare_norm_seam(
        anatomy,
        "wrong pair",
        norm=f"{at}.post_attention_layernorm",
        readers=[f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"],
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    transform = Transform([SeamChange("wrong pair", scale=torch.full((32,), 2.0))])
    with pytest.raises(NotEquivalent, match=r"wrong pair\. Nothing was folded"):
        transform.prove(anatomy, Seams([wrong]))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_that_was_changed_otherwise_does_not_verify():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    before = outputs(anatomy, ids)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.001)
    with pytest.raises(NotEquivalent, match="differs from the original by"):
        verify(anatomy, before, ids)


def test_folding_in_float64_is_nearer_than_folding_in_the_model_s_dtype():
    """In bf16 the fold itself must not add to the one rounding that storing costs."""
    model = zoo.tiny("llama", dtype=torch.bfloat16)
    anatomy = resolve(model)
    seam = find_seams(anatomy).of("norm")[0]
    scale = torch.rand(seam.free, dtype=torch.float64) + 0.5
    weight = seam.readers[0].weight.double()
    seam.apply(scale=scale)
    exact = weight * scale
    stored = seam.readers[0].weight.double()
    assert torch.equal(stored, exact.bfloat16().double())


def test_errors_are_relative_to_the_whole_and_nan_is_infinite():
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(x + torch.tensor([0.0, 0.5]), x) == pytest.approx(0.1)
    assert relative_error(x * torch.nan, x) == float("inf")


def test_a_value_shift_on_llama_is_exact_with_grouped_heads_and_loads_as_a_standard_checkpoint(tmp_path):
    """quant.md: `attention_bias=True` gives the checkpoint the places for the biases."""
    import transformers

    model = zoo.tiny("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    before = outputs(anatomy, ids)
    seams = check_seams(anatomy)
    values = seams.of("value", carry="shift")
    assert len(values) == 2 and values[0].width == 2 * values[0].free
    shift = torch.linspace(-0.85, 0.85, values[0].free, dtype=torch.float64)
    transform = Transform([SeamChange(s.name, shift=shift) for s in values])
    assert transform.prove(anatomy, seams) < 1e-13
    transform.fold(anatomy, seams)
    verify(anatomy, before, ids)
    state = model.state_dict()
    for layer in range(2):
        for part, width in (("q", 32), ("k", 16)):
            state[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = torch.zeros(width)
    config = type(model.config).from_dict({**model.config.to_dict(), **values[0].format})
    plain = transformers.LlamaForCausalLM(config)
    plain.load_state_dict(state)
    plain.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert relative_error(loaded(ids).logits.double(), before) < FLOAT32_BOUND


def test_a_model_that_was_made_in_inference_mode_is_proved_folded_and_restored_too():
    with torch.inference_mode():
        model = zoo.tiny("llama")
    anatomy = resolve(model)
    seams = check_seams(anatomy)
    ids, _ = zoo.tokens(model)
    before = outputs(anatomy, ids)
    transform = random_transform(list(seams), seed=3)
    assert transform.prove(anatomy, seams) <= FLOAT64_BOUND
    with folded(anatomy, seams, transform.changes):
        pass
    assert torch.equal(outputs(anatomy, ids), before)
    transform.fold(anatomy, seams)
    assert verify(anatomy, before, ids).stored <= FLOAT32_BOUND
