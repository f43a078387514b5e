"""Rotations leave the function alone in float64, on every family that is not refused; what they do inside is checked on the stream."""

import copy

import pytest
import torch
import zoo

from skerry.anatomy import Site, capture, resolve
from skerry.anatomy.content import content_key
from skerry.anatomy.dense import Dense
from skerry.anatomy.exact import exact, run_float64
from skerry.errors import NotEquivalent, NotPossible, UnknownOption
from skerry.tame.hadamard import keeping_ones, random_orthogonal, rotation
from skerry.tame.online import online_rotation
from skerry.tame.rotation import Rotation, hadamard_rotation, plan_rotation, rotate, untie_head

POST_NORM = ["opt_350m", *zoo.ENCODERS]
NORMS_BEHIND = ["gemma2", "gemma3", "olmo2", "olmo3", "glm4"]
REFUSED = [*POST_NORM, *NORMS_BEHIND]
ROTATED = [n for n in zoo.NAMES if n not in REFUSED]
LAYER_NORM = [n for n in ROTATED if plan_rotation(resolve(zoo.tiny(n))).keeps_ones]
TIED = ["gpt2", "opt", "bloom", "gemma", "falcon_7b", "cohere", "starcoder2"]


@torch.no_grad()
def logits_of(model, ids):
    if next(model.parameters()).dtype == torch.float64:
        with exact():
            return model(ids).logits
    return model(ids).logits.double()


def error(new, old):
    return float((new - old).abs().max() / old.abs().max())


def rotated_pair(name, dtype, **overrides):
    """Logits before and after a rotation of everything that can be, by random matrices, another for each head."""
    model = zoo.tiny(name, dtype=dtype, **overrides)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    ids, _ = zoo.tokens(model)
    before = logits_of(model, ids)
    q = None
    if plan.width:
        q = random_orthogonal(plan.width, seed=3)
        q = keeping_ones(q) if plan.keeps_ones else q
    heads = {
        layer: torch.stack([random_orthogonal(h.width, seed=10 * layer + i) for i in range(h.num_kv_heads)])
        for layer, h in plan.heads.items()
    }
    rotate(anatomy, residual=q, heads=heads, plan=plan)
    return before, logits_of(model, ids), plan, anatomy


@pytest.mark.parametrize("name", zoo.NAMES)
def test_logits_stay_in_float64_and_in_float32(name):
    before, after, plan, _ = rotated_pair(name, torch.float64)
    assert error(after, before) < 1e-13
    assert (plan.stream is None) == (name in REFUSED)
    assert bool(plan.heads) == (name != "olmo")
    before, after, _, _ = rotated_pair(name, torch.float32)
    assert error(after, before) < 2e-6


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "cohere", "gemma", "qwen2_moe"])
def test_the_stream_itself_is_rotated_and_only_a_layernorms_stream_loses_its_mean(name):
    model = zoo.tiny(name, dtype=torch.float64)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    ids, _ = zoo.tokens(model)
    sites = [Site(layer, "resid.out") for layer in range(anatomy.dims.num_layers - 1)]
    with exact():
        before = capture(anatomy, ids, parts=["resid.out"])
    q = rotation(plan.width, seed=5, keep_ones=plan.keeps_ones).value
    rotate(anatomy, residual=q, plan=plan)
    with exact():
        after = capture(anatomy, ids, parts=["resid.out"])
    for site in sites:
        old = before[site]
        if plan.keeps_ones:
            assert old.mean(-1).abs().max() > 0.01
            old = old - old.mean(-1, keepdim=True)
        assert (after[site] - old @ q).abs().max() < 1e-12 * old.abs().max()


@pytest.mark.parametrize("name", ["llama", "phi3", "falcon_40b", "bert", "gpt2"])
def test_each_value_head_has_its_own_rotation(name):
    model = zoo.tiny(name, dtype=torch.float64)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    heads = plan.heads[1]
    ids, _ = zoo.tokens(model)
    r = torch.stack([random_orthogonal(heads.width, seed=i) for i in range(heads.num_kv_heads)])
    with exact():
        before = capture(anatomy, ids, parts=["attn.v"])[Site(1, "attn.v")]
    rotate(anatomy, heads={1: r}, plan=plan)
    with exact():
        after = capture(anatomy, ids, parts=["attn.v"])[Site(1, "attn.v")]
    expected = torch.cat([v @ r[i] for i, v in enumerate(before.chunk(heads.num_kv_heads, -1))], -1)
    assert (after - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", REFUSED)
def test_a_stream_that_cannot_be_rotated_is_refused_with_the_reason_and_the_model_is_left_alone(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    key = content_key(model)
    reason = (
        "its blocks are post-norm"
        if name in POST_NORM
        else "the norms stand behind attention and feed-forward"
    )
    with pytest.raises(
        NotPossible, match=f"^{anatomy.family}: the residual stream cannot be rotated: {reason}"
    ):
        rotate(anatomy, residual=torch.eye(anatomy.dims.hidden), plan=plan)
    assert content_key(model) == key
    assert plan.rows()[0][:2] == ("residual", False)
    assert reason in plan.rows()[0][2]


@pytest.mark.parametrize("name", NORMS_BEHIND)
def test_norms_behind_attention_with_one_gain_for_all_channels_commute_with_a_rotation(name):
    model = zoo.tiny(name, dtype=torch.float64)
    anatomy = resolve(model)
    for site, bound in anatomy.matrices.items():
        if site.part in ("norm.attn.add", "norm.mlp.add"):
            bound.parameter.data.fill_(0.7)
    plan = plan_rotation(anatomy)
    ids, _ = zoo.tokens(model)
    before = logits_of(model, ids)
    rotate(anatomy, residual=random_orthogonal(32), plan=plan)
    assert error(logits_of(model, ids), before) < 1e-13


def test_clipped_values_are_found_and_their_heads_refused():
    anatomy = resolve(zoo.tiny("olmo"))
    plan = plan_rotation(anatomy)
    assert "not linear in its values" in plan.heads_why_not[0]
    with pytest.raises(
        NotPossible, match="the value heads of layer 1 cannot be rotated: the mix of a head is not"
    ):
        rotate(anatomy, heads={1: torch.eye(8)}, plan=plan)
    assert plan_rotation(resolve(zoo.tiny("olmo", clip_qkv=None))).heads.keys() == {0, 1}


def test_a_stream_that_goes_on_from_the_norms_output_is_refused():
    anatomy = resolve(zoo.tiny("bloom", apply_residual_connection_post_layernorm=True))
    with pytest.raises(NotPossible, match="block 0 does more than add: resid.out is no sum of"):
        rotate(anatomy, residual=rotation(32, keep_ones=True).value)


def test_a_model_without_its_head_is_refused():
    anatomy = resolve(zoo.tiny("llama", headless=True))
    with pytest.raises(NotPossible, match="the model has no head, so its last hidden state is its output"):
        rotate(anatomy, residual=rotation(32).value)


def test_a_reader_that_no_site_names_is_refused_by_its_name():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    mlp = model.model.layers[1].mlp
    mlp.side = torch.nn.Linear(32, 48, bias=False)
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * mlp.side(x))
    with pytest.raises(
        NotPossible, match=r"model.layers.1.mlp.side reads the same tensor as .*its weight has no site"
    ):
        rotate(anatomy, residual=rotation(32).value)
    mlp.forward = lambda x: (
        mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)) + mlp.side(x)[..., :32]
    )
    with pytest.raises(NotPossible, match="block 1 does more than add"):
        rotate(anatomy, residual=rotation(32).value)
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x.abs())) * mlp.up_proj(x))
    with pytest.raises(
        NotPossible, match="mlp.gate_proj reads neither the stream nor an RMSNorm or LayerNorm of it"
    ):
        rotate(anatomy, residual=rotation(32).value)


def test_matrices_that_are_no_rotation_of_this_model_are_refused():
    llama, gpt2 = resolve(zoo.tiny("llama")), resolve(zoo.tiny("gpt2"))
    with pytest.raises(
        UnknownOption, match=r"the residual rotation has shape \[16, 16\]; \[32, 32\] is needed"
    ):
        rotate(llama, residual=torch.eye(16))
    with pytest.raises(UnknownOption, match="is not orthogonal: Q Q.T differs from 1 by 3.0e"):
        rotate(llama, residual=2 * torch.eye(32))
    with pytest.raises(UnknownOption, match="must keep the all-ones vector"):
        rotate(gpt2, residual=rotation(32).value)
    with pytest.raises(
        NotPossible, match="the value heads of layer 7 cannot be rotated: the model has layers 0 to 1"
    ):
        rotate(llama, heads={7: torch.eye(8)})


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_copy_in_float64_and_the_model_in_float32_are_rotated_alike(name):
    small = zoo.tiny(name)
    large = copy.deepcopy(small).double()
    for model in (small, large):
        anatomy = resolve(model)
        hadamard_rotation(plan_rotation(anatomy)).fold(anatomy)
    for (key, a), (_, b) in zip(small.named_parameters(), large.named_parameters(), strict=True):
        # Rounded once: half a unit in the last place, of the entries of that parameter.
        assert (a.double() - b).abs().max() <= 2**-24 * b.abs().max() * 1.01, key


@pytest.mark.parametrize("name", ["llama", "stablelm", "bloom", "qwen3_moe"])
def test_rotating_back_gives_the_folded_model_again(name):
    model = zoo.tiny(name, dtype=torch.float64)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    q = rotation(32, keep_ones=plan.keeps_ones).value
    r = {layer: random_orthogonal(h.width, seed=layer) for layer, h in plan.heads.items()}
    rotate(anatomy, residual=torch.eye(32), plan=plan)
    folded = copy.deepcopy(dict(model.named_parameters()))
    rotate(anatomy, residual=q, heads=r)
    rotate(anatomy, residual=q.T, heads={layer: x.T for layer, x in r.items()})
    for key, p in model.named_parameters():
        assert (p - folded[key]).abs().max() < 1e-10, key


@pytest.mark.parametrize("name", LAYER_NORM)
def test_a_layernorm_checkpoint_gets_no_new_parameter(name):
    names = {n for n, _ in zoo.tiny(name, tie_word_embeddings=False).named_parameters()}
    _, _, plan, anatomy = rotated_pair(name, torch.float32)
    assert plan.new_biases == ()
    assert {n for n, _ in anatomy.model.named_parameters()} - names <= {"lm_head.weight"}


def test_a_bias_over_a_gain_near_zero_goes_into_new_biases_or_is_refused_where_none_can_be(monkeypatch):
    model = zoo.tiny("stablelm", dtype=torch.float64)
    norm = model.model.layers[0].post_attention_layernorm
    norm.weight.data[3] = 1e-9
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    assert plan.new_biases == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
    assert model.model.layers[0].mlp.gate_proj.bias is None  # a plan changes nothing
    ids, _ = zoo.tokens(model)
    before = logits_of(model, ids)
    rotate(anatomy, residual=rotation(32, keep_ones=True).value, plan=plan)
    assert error(logits_of(model, ids), before) < 1e-13
    assert norm.bias.abs().max() == 0

    # Routed experts without biases, say: there is nowhere to put it.
    monkeypatch.setattr(Dense, "can_take_bias", property(lambda dense: False))
    model = zoo.tiny("stablelm")
    model.model.layers[0].post_attention_layernorm.weight.data[3] = 0
    with pytest.raises(
        NotPossible,
        match=r"post_attention_layernorm has a bias where its gain is 0, and .*gate_proj can take",
    ):
        rotate(resolve(model), residual=rotation(32, keep_ones=True).value)


@pytest.mark.parametrize("name", TIED)
def test_a_rotated_model_with_a_tied_head_is_a_plain_checkpoint(name, tmp_path):
    import transformers

    before, after, plan, anatomy = rotated_pair(name, torch.float32)
    model = anatomy.model
    assert plan.needs == {"tie_word_embeddings": False}
    assert not model.config.tie_word_embeddings
    assert Site(None, "w.head") in anatomy.matrices
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, _ = zoo.tokens(model)
    assert torch.equal(logits_of(again, ids), after)
    assert error(after, before) < 2e-6


def test_a_model_that_gives_no_numbers_is_refused():
    model = zoo.tiny("llama")
    model.model.layers[0].self_attn.v_proj.weight.data[0, 0] = float("nan")
    plan = plan_rotation(resolve(model))
    assert (
        plan.why_not
        == "the residual stream cannot be rotated: on a few ids Linear gives values that are no numbers"
    )
    assert plan.heads_why_not[0] == "on a few ids its mix holds values that are no numbers"
    assert hadamard_rotation(plan).is_empty


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "cohere", "qwen2_moe"])
def test_models_of_16_bits_are_read_alike_and_folded_with_one_rounding(name, dtype):
    model = zoo.tiny(name, dtype=dtype)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    assert plan.rows() == plan_rotation(resolve(zoo.tiny(name))).rows()
    ids, _ = zoo.tokens(model)
    before = run_float64(anatomy, ids, logits=True)
    rotations = hadamard_rotation(plan)
    assert rotations.prove(anatomy, plan) < 1e-13
    rotations.fold(anatomy, plan)
    after = run_float64(anatomy, ids, logits=True)
    assert float((after - before).norm() / before.norm()) < 3 * torch.finfo(dtype).eps


def test_untying_can_be_undone():
    model = zoo.tiny("gpt2")
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    undo = untie_head(anatomy, plan.stream)
    assert model.lm_head.weight is not model.transformer.wte.weight
    undo()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.tie_word_embeddings
    assert plan.stream.is_tied
    assert Site(None, "w.head") not in anatomy.matrices


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "qwen2_moe", "olmo2", "bert", "stablelm"])
def test_the_proof_is_in_float64_and_leaves_the_model_bit_for_bit(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    key = content_key(model)
    rotations = hadamard_rotation(plan, seed=2)
    assert rotations.prove(anatomy, plan) < 1e-13
    assert content_key(model) == key
    again = Rotation.from_state(rotations.state())
    again.fold(anatomy, plan)
    assert content_key(model) != key


def test_the_proof_finds_what_is_not_equivalent():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    plan.stream.writers.pop()  # the last down projection is forgotten
    with pytest.raises(
        NotEquivalent, match="the rotation changes the model: float64 outputs differ by .*Nothing was folded"
    ):
        hadamard_rotation(plan).prove(anatomy, plan)


def test_one_channel_of_the_stream_is_spread_over_all():
    for name in ("llama", "gpt2"):
        model = zoo.tiny(name, dtype=torch.float64)
        anatomy = resolve(model)
        embed = anatomy.matrices[Site(None, "w.embed")].parameter
        embed.data[:, 7] += 100
        plan = plan_rotation(anatomy)
        before = embed.abs().amax(1) / embed.norm(dim=1)
        hadamard_rotation(plan).fold(anatomy, plan)
        after = embed.abs().amax(1) / embed.norm(dim=1)
        assert before.min() > 0.9
        assert after.max() < 0.6


def test_the_choice_of_matrices_is_told():
    why = hadamard_rotation(plan_rotation(resolve(zoo.tiny("gpt2")))).why
    assert why == (
        "residual: Hadamard of order 32: Sylvester 32; signs from seed 0; the all-ones direction is kept; "
        "heads: Hadamard of order 8: Sylvester 8; signs from seed 1 and on"
    )


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "qwen2_moe", "gpt_oss", "starcoder2", "bert"])
def test_online_rotations_change_what_is_read_and_not_what_comes_out(name):
    model = zoo.tiny(name, dtype=torch.float64)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    key = content_key(model)
    before = logits_of(model, ids)
    with online_rotation(anatomy) as made:
        after = logits_of(model, ids)
        assert error(after, before) < 1e-13
        assert not torch.equal(after, before)
    assert content_key(model) == key
    assert anatomy.dims.head_dim in made


def test_what_is_opened_later_reads_the_rotated_tensors():
    model = zoo.tiny("llama", dtype=torch.float64)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    site = Site(1, "mlp.down.in")
    with exact():
        plain = capture(anatomy, ids, parts=["mlp.down.in"])[site]
        with online_rotation(anatomy, attention=False) as made:
            inside = capture(anatomy, ids, parts=["mlp.down.in"])[site]
    h = made[48].value
    assert (inside - plain @ h).abs().max() < 1e-12


def test_online_attention_is_refused_where_attention_cannot_be_changed():
    anatomy = resolve(zoo.tiny("bloom"))
    with (
        pytest.raises(UnknownOption, match="the attention of BloomForCausalLM cannot be changed"),
        online_rotation(anatomy),
    ):
        pass
    ids, _ = zoo.tokens(anatomy.model)
    before = logits_of(anatomy.model, ids)
    with online_rotation(anatomy, attention=False):
        assert error(logits_of(anatomy.model, ids), before) < 2e-6
