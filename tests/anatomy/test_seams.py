"""Seams: every family's changes are exact in float64, wrong claims are found, and what cannot be carried is said."""

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.exact import run_float64
from skerry.anatomy.find_seams import BOUND, _Proof, check_seams, declare_norm_seam, find_seams, random_change
from skerry.anatomy.seams import Seams
from skerry.errors import UnknownOption, WrongSeam

# name -> kinds and what they carry; what is absent must be explained in `missing` or `cannot`.
LAYER_NORM = {"norm": {"scale", "shift"}, "value": {"scale", "shift"}}
GATED_RMS = {"norm": {"scale"}, "value": {"scale", "shift"}, "up": {"scale"}}
ALL = {**LAYER_NORM, "up": {"scale"}}
NO_NORM = {"value": {"scale", "shift"}, "up": {"scale"}}
POST_NORM = {"post-norm": {"scale", "shift"}, "value": {"scale", "shift"}}
EXPECTED = {
    **dict.fromkeys(
        ["gpt2", "bloom", "gpt_neox", "gpt_neox_sequential", "starcoder2", "phi", "gptj"], LAYER_NORM
    ),
    **dict.fromkeys(["falcon_rw", "falcon_7b", "falcon_40b", "falcon_11b"], LAYER_NORM),
    "opt": ALL,
    "opt_350m": NO_NORM,
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "granite"], GATED_RMS
    ),
    **dict.fromkeys(["cohere", "cohere2", "glm", "glm4", "mixtral", "qwen2_moe", "qwen3_moe"], GATED_RMS),
    **dict.fromkeys(["stablelm", "stablelm_12b"], ALL),
    **dict.fromkeys(["olmo2", "olmo3"], NO_NORM),
    "olmo": {"up": {"scale"}},  # its values are clipped, which no change passes
    "gpt_oss": {"norm": {"scale"}, "value": {"scale"}},
    **dict.fromkeys(["bert", "roberta", "xlm_roberta", "camembert", "electra", "mpnet"], POST_NORM),
    "distilbert": {"value": {"scale", "shift"}},
}


@pytest.mark.parametrize("name", zoo.NAMES)
def test_each_family_has_the_seams_that_the_table_says_and_they_are_exact(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seams = check_seams(anatomy)
    carried = {}
    for seam in seams:
        assert carried.setdefault(seam.kind, set(seam.carries)) == set(seam.carries)
    assert carried == EXPECTED[name]
    # With other random numbers than those of the check, all at once.
    assert _Proof(anatomy, seed=7).error(list(seams)) < 1e-12
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    # What is not carried is explained.
    for kind, word in (("norm", "norm.attn"), ("value", "v-o"), ("up", "up-down")):
        if kind not in carried and not (kind == "norm" and "post-norm" in carried):
            assert any(
                word in key or word.split(".")[0] in key or key == "post-norm" for key in seams.missing
            ), seams.missing
    for seam in seams:
        assert seam.carries | set(seam.cannot) == {"scale", "shift"}
        assert all(len(reason) > 20 for reason in seam.cannot.values())


@pytest.mark.parametrize("name", ["llama", "opt", "falcon_40b", "bert", "mixtral", "phi3", "gemma2"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_change_of_one_seam_leaves_the_function_alone(name, seed):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    seams = find_seams(anatomy)
    seam = seams[seed % len(seams)]
    if not seam.carries:
        return
    before = run_float64(anatomy, ids, whole=True)
    generator = torch.Generator().manual_seed(seed)
    change = random_change(seam, generator)
    undo = []
    after = run_float64(
        anatomy,
        ids,
        whole=True,
        change=lambda layer: undo.append(seam.apply(**change)) if layer == seam.layer else None,
    )
    for take_away in undo:
        take_away()
    assert float((after - before).abs().max() / before.abs().max()) < 1e-12


def test_the_tensor_itself_becomes_what_was_asked_for():
    """x' = (x - z) / s at the readers, channel for channel, with grouped value heads too."""
    from skerry.anatomy import capture

    for name, kind, part in (
        ("opt", "norm", "attn.in"),
        ("llama", "value", "attn.mix"),
        ("llama", "up", "mlp.down.in"),
    ):
        model = zoo.tiny(name, dtype=torch.float64)
        anatomy = resolve(model)
        ids, _ = zoo.tokens(model)
        seam = next(s for s in find_seams(anatomy) if s.kind == kind and s.layer == 0)
        before = capture(anatomy, ids, [part])[seam.site]
        change = random_change(seam, torch.Generator().manual_seed(3))
        seam.apply(**change)
        after = capture(anatomy, ids, [part])[seam.site]
        shift = change.get("shift", torch.zeros(seam.free, dtype=torch.float64))[seam.spread]
        expected = (before - shift) / change["scale"][seam.spread]
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)


def test_pooling_over_grouped_heads_takes_the_extreme_of_the_channels_that_move_together():
    seam = next(s for s in find_seams(resolve(zoo.tiny("llama"))) if s.kind == "value")
    assert seam.width == 2 * seam.free
    x = torch.arange(seam.width, dtype=torch.float64)
    high, low = seam.pool(x), seam.pool(x, "amin")
    for channel in range(seam.free):
        group = x[seam.spread == channel]
        assert high[channel] == group.max() and low[channel] == group.min()


def test_a_shift_says_which_checkpoint_can_hold_it():
    def of(name):
        return next(s for s in check_seams(resolve(zoo.tiny(name))) if s.kind == "value")

    assert of("opt").format == {} and of("gpt2").format == {}
    assert of("llama").format == {"attention_bias": True} and of("llama").becomes is None
    assert of("qwen2").format == {"attention_bias": True} and of("qwen2").becomes == "llama"
    assert of("mistral").becomes == "llama"
    assert of("phi3").format is None and of("mixtral").format is None


def test_a_declared_seam_that_misses_a_reader_is_an_error_that_names_it():
    anatomy = resolve(zoo.tiny("llama"))
    at = "model.layers.0"
    wrong = declare_norm_seam(
        anatomy,
        "mine",
        norm=f"{at}.input_layernorm",
        readers=[f"{at}.self_attn.q_proj", f"{at}.self_attn.k_proj"],
    )
    with pytest.raises(WrongSeam, match=r"seam mine does not hold.*attn\.in"):
        check_seams(anatomy, declared=[wrong])
    right = declare_norm_seam(
        anatomy,
        "mine",
        norm=f"{at}.input_layernorm",
        readers=[f"{at}.self_attn.{p}_proj" for p in "qkv"],
    )
    assert check_seams(anatomy, Seams([]), declared=[right]).named("mine") is right


def test_the_peer_s_wrong_pair_on_gemma_is_caught():
    """The market leader pairs `post_attention_layernorm` with gate and up on Gemma 2, which that norm does not feed."""
    anatomy = resolve(zoo.tiny("gemma2"))
    at = "model.layers.0"
    wrong = declare_norm_seam(
        anatomy,
        "peer",
        norm=f"{at}.post_attention_layernorm",
        readers=[f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"],
    )
    with pytest.raises(WrongSeam, match="peer"):
        check_seams(anatomy, declared=[wrong])


def test_mistakes_in_a_declaration_or_a_change_are_told():
    anatomy = resolve(zoo.tiny("llama"))
    at = "model.layers.0"
    with pytest.raises(UnknownOption, match="no norm with a weight"):
        declare_norm_seam(anatomy, "x", norm=f"{at}.nothing", readers=[f"{at}.self_attn.q_proj"])
    with pytest.raises(UnknownOption, match=r"did you mean 'model\.layers\.0\.self_attn\.q_proj'"):
        declare_norm_seam(anatomy, "x", norm=f"{at}.input_layernorm", readers=[f"{at}.self_attn.q_prj"])
    seam = check_seams(anatomy).of("norm")[0]
    with pytest.raises(UnknownOption, match="carries no shift: the norm has no bias"):
        seam.apply(shift=torch.ones(seam.free))
    with pytest.raises(UnknownOption, match="has shape"):
        seam.apply(scale=torch.ones(3))
    for bad in (torch.zeros(seam.free), -torch.ones(seam.free), torch.full((seam.free,), torch.nan)):
        with pytest.raises(UnknownOption, match="positive and finite"):
            seam.apply(scale=bad)
    with pytest.raises(UnknownOption, match="there is no seam"):
        check_seams(anatomy).named("9.norm.attn")


def test_a_claim_that_fails_is_left_out_with_its_reason():
    """OLMo 1 clips q, k and v: a change of the values does not pass."""
    seams = check_seams(resolve(zoo.tiny("olmo")))
    assert not seams.of("value")
    assert "moved the output" in seams.missing["0.v-o"]
    assert BOUND < 1e-8


@pytest.mark.parametrize("name", ["llama", "opt", "gpt_neox"])
def test_an_architecture_without_a_declaration_has_seams_from_its_trace(name):
    from skerry.anatomy.resolve import trace

    anatomy = trace(zoo.tiny(name))
    seams = check_seams(anatomy)
    assert {s.kind for s in seams} >= {"value"}
    assert _Proof(anatomy, seed=3).error(list(seams)) < 1e-12
