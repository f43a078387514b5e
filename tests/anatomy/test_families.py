"""Every declared family, checked on a small random model against what the model itself reports or a recomputation."""

import pytest
import torch
import zoo
from torch.testing import assert_close

from skerry.anatomy import Site, resolve
from skerry.anatomy.families import all_families, family_of
from skerry.anatomy.model import BoundMatrix

every_family = pytest.mark.parametrize("name", zoo.NAMES)
# transformers computes norms, rotations and softmaxes of a float64 model in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-9}
PROJECTIONS = [
    ("attn.in", "w.q", "attn.q"),
    ("attn.in", "w.k", "attn.k"),
    ("attn.in", "w.v", "attn.v"),
    ("attn.mix", "w.o", "attn.out"),
    ("mlp.in", "w.gate", "mlp.gate"),
    ("mlp.in", "w.up", "mlp.up"),
    ("mlp.down.in", "w.down", "mlp.out"),
]


def bias_of(look, bound: BoundMatrix):
    """The bias beside a weight, cut as the weight is."""
    (name,) = [n for n, p in look.model.named_parameters() if p is bound.parameter]
    bias = dict(look.model.named_parameters()).get(name.removesuffix("weight") + "bias")
    if bias is None:
        return 0.0
    return (
        bias.detach() if bound.matrix.split is None else bound.matrix.split(bias.detach(), look.anatomy.dims)
    )


def normalized(x, gain, bias, epsilon, *, centre):
    x = x - x.mean(-1, keepdim=True) if centre else x
    y = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return y * (1.0 if gain is None else gain) + (0.0 if bias is None else bias)


def assert_is_norm(x, gain, bias, y):
    """y is a LayerNorm or an RMSNorm of x with this gain and bias."""
    kinds = [
        normalized(x, gain, bias, epsilon, centre=centre)
        for centre in (True, False)
        for epsilon in (1e-5, 1e-6, 1e-12)
    ]
    best = min(kinds, key=lambda candidate: float((candidate - y).abs().max()))
    assert_close(best, y, **CLOSE)


@every_family
def test_every_place_is_bound_and_fires(look, name):
    seen = look(name)
    assert seen.anatomy.unplaced == ()
    assert seen.anatomy.confidence == "declared"
    assert sorted(seen.anatomy.attention) == list(seen.layers)
    layers = {site.layer for site in seen.sites if site.part == "attn.probs"}
    assert layers == set(seen.layers)


@every_family
def test_the_residual_stream_is_what_output_hidden_states_reports(look, name):
    seen = look(name)
    last = seen.layers[-1]
    assert len(seen.hidden) == len(seen.layers) + 1
    for layer in seen.layers:
        assert_close(seen.at(layer, "resid.in"), seen.hidden[layer].flatten(0, 1), **EXACT)
        if layer != last:
            assert_close(seen.at(layer, "resid.out"), seen.hidden[layer + 1].flatten(0, 1), **EXACT)
    head_in = seen.at(None, "head.in")
    end = seen.at(last, "resid.out") if head_in is None else head_in
    assert_close(end, seen.hidden[-1].flatten(0, 1), **EXACT)


@every_family
def test_a_projection_of_what_it_reads_is_what_it_writes(look, name):
    seen = look(name)
    checked = set()
    for layer in seen.layers:
        for read, weight, written in PROJECTIONS:
            x, w, y = seen.at(layer, read), seen.weight(layer, weight), seen.at(layer, written)
            if x is None or w is None or y is None:
                continue
            bias = bias_of(seen, seen.anatomy.matrices[Site(layer, weight)])
            assert_close(x @ w.T + bias, y, **EXACT)
            checked.add(weight)
    assert checked >= {"w.q", "w.k", "w.v", "w.o"}
    assert checked >= {"w.up", "w.down"} or name in zoo.ROUTED


@every_family
def test_head_in_times_the_head_is_the_models_output(look, name):
    seen = look(name)
    x = seen.at(None, "head.in")
    if x is None:
        pytest.skip("the blocks end this model")
    w = seen.weight(None, "w.head")
    w = seen.weight(None, "w.embed") if w is None else w
    with torch.no_grad():
        logits = seen.model(seen.ids).logits.flatten(0, 1)
    told = x @ w.T
    bias = getattr(seen.model.get_output_embeddings(), "bias", None)
    if bias is not None:
        told = told + bias.detach()
    config = seen.anatomy.config
    told = told * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    assert_close(told if cap is None else cap * torch.tanh(told / cap), logits, **CLOSE)


@every_family
def test_values_mixed_by_the_reported_probabilities_are_what_the_output_projection_reads(look, name):
    seen = look(name)
    for layer in seen.layers:
        value = seen.heads(clipped(seen, seen.at(layer, "attn.v")))
        groups = seen.anatomy.dims.num_heads // seen.anatomy.dims.num_kv_heads
        mixed = seen.attentions[layer].double() @ value.repeat_interleave(groups, dim=1)
        assert_close(seen.heads(seen.at(layer, "attn.mix")), mixed, **CLOSE)


def clipped(seen, x):
    """OLMo may clip q, k and v after their projections wrote them."""
    limit = getattr(seen.anatomy.config, "clip_qkv", None)
    return x if limit is None else x.clamp(-limit, limit)


@every_family
def test_queries_and_keys_of_the_first_token_are_what_attention_compares(look, name):
    """A rotation leaves position 0 alone, so that what lies between a projection and the logits is at most a norm."""
    seen = look(name)
    for layer in seen.layers:
        view = seen.views[layer]
        first = {}
        for part in ("q", "k"):
            x = seen.heads(clipped(seen, seen.at(layer, f"attn.{part}")))[:, :, 0]
            gain, bias = seen.weight(layer, f"norm.{part}"), seen.weight(layer, f"norm.{part}.bias")
            if gain is not None:
                whole = gain.numel() == x.shape[1] * x.shape[2] and name.startswith("olmo")
                x = x.flatten(1) if whole else x
                shape = x.shape[1:] if gain.numel() > x.shape[-1] else x.shape[-1:]
                gain = gain.reshape(shape)
                kinds = [normalized(x, gain, bias, e, centre=c) for c in (True, False) for e in (1e-5, 1e-6)]
                kinds = [k.reshape(len(seen.ids), -1, seen.anatomy.dims.head_dim) for k in kinds]
            else:
                kinds = [x]
            first[part] = kinds
        if view.query is not None:
            # OPT scales its queries before it hands them over.
            scaled = seen.anatomy.dims.head_dim**0.5 if name.startswith("opt") else 1.0
            for part, seen_first in (("q", view.query[:, :, 0] * scaled), ("k", view.key[:, :, 0])):
                best = min(first[part], key=lambda k: float((k - seen_first).abs().max()))
                assert_close(best, seen_first, **CLOSE)
        else:
            (q,), (k,) = first["q"], first["k"]
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            logits = (q * k).sum(-1) * q.shape[-1] ** -0.5
            relative = seen.weight(None, "w.position.relative")
            logits = logits if relative is None else logits + relative[0]
            assert_close(view.logits[:, :, 0, 0].double(), logits, **CLOSE)


@every_family
def test_the_feed_forward_multiplies_activated_gate_and_up(look, name):
    from transformers.activations import ACT2FN

    seen = look(name)
    config = seen.anatomy.config
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    kind = next((getattr(config, n) for n in names if getattr(config, n, None)), "gelu_pytorch_tanh")
    act = ACT2FN[kind]
    for layer in seen.layers:
        up, mid = seen.at(layer, "mlp.up"), seen.at(layer, "mlp.down.in")
        if up is not None and mid is not None:
            gate = seen.at(layer, "mlp.gate")
            assert_close(act(up) if gate is None else act(gate) * up, mid, **CLOSE)


@every_family
def test_what_both_halves_add_makes_the_residual(look, name):
    seen = look(name)
    factor = getattr(seen.anatomy.config, "residual_multiplier", 1.0)
    for layer in seen.layers:
        adds = []
        for half in ("attn", "mlp"):
            added = seen.at(layer, f"{half}.add")
            adds.append(factor * (seen.at(layer, f"{half}.out") if added is None else added))
        start, mid, end = (seen.at(layer, f"resid.{p}") for p in ("in", "mid", "out"))
        if mid is None:
            assert_close(start + adds[0] + adds[1], end, **EXACT)
        elif Site(layer, "norm.attn.resid") in seen.anatomy.matrices:
            for before, add, half, after in ((start, adds[0], "attn", mid), (mid, adds[1], "mlp", end)):
                gain = seen.weight(layer, f"norm.{half}.resid")
                assert_is_norm(before + add, gain, seen.weight(layer, f"norm.{half}.resid.bias"), after)
        else:
            assert_close(start + adds[0], mid, **EXACT)
            assert_close(mid + adds[1], end, **EXACT)


@every_family
def test_a_norms_gain_and_bias_make_what_is_read_from_the_residual(look, name):
    seen = look(name)
    for layer in seen.layers:
        start, mid = seen.at(layer, "resid.in"), seen.at(layer, "resid.mid")
        ways = [("norm.attn", start, "attn.in"), ("norm.mlp", start if mid is None else mid, "mlp.in")]
        ways += [
            (f"norm.{half}.add", seen.at(layer, f"{half}.out"), f"{half}.add") for half in ("attn", "mlp")
        ]
        for part, x, read in ways:
            y, gain = seen.at(layer, read), seen.weight(layer, part)
            if y is None:
                assert gain is None, f"{layer}.{part} is placed, {read} is not"
            elif gain is not None or name == "olmo":
                assert_is_norm(x, gain, seen.weight(layer, part + ".bias"), y)
            elif read == "mlp.in" and mid is None:
                assert_close(y, seen.at(layer, "attn.in"), **EXACT)  # side by side under one norm
            else:
                assert_close(y, x, **EXACT)


@every_family
def test_the_outer_norms_begin_and_end_the_stream(look, name):
    seen = look(name)
    gain, bias = seen.weight(None, "norm.final"), seen.weight(None, "norm.final.bias")
    if gain is not None:
        assert_is_norm(seen.at(seen.layers[-1], "resid.out"), gain, bias, seen.at(None, "head.in"))
    gain, bias = seen.weight(None, "norm.embed"), seen.weight(None, "norm.embed.bias")
    if gain is not None and Site(None, "w.embed.project") not in seen.anatomy.matrices:
        unit = (seen.at(0, "resid.in") - bias) / gain
        assert_close(unit.mean(-1), torch.zeros(len(unit), dtype=unit.dtype), **CLOSE)
        assert_close(unit.square().mean(-1), torch.ones(len(unit), dtype=unit.dtype), rtol=1e-3, atol=0)


@every_family
def test_every_matrix_and_gain_of_the_model_has_a_site(look, name):
    """Left over are biases of linear layers and heads that are no language-model head."""
    anatomy = look(name).anatomy
    placed = {p.data_ptr() for bound in anatomy.matrices.values() for p in (bound.parameter, *bound.more)}
    left = [n for n, p in anatomy.trunk.named_parameters() if p.data_ptr() not in placed]
    left = [n for n in left if "pooler" not in n and not n.endswith(("proj_bias", "bias"))]
    assert left == []
    norms = [n for n, _ in anatomy.trunk.named_parameters() if n.endswith("bias") and is_norm(n)]
    named = dict(anatomy.trunk.named_parameters())
    assert [n for n in norms if named[n].data_ptr() not in placed] == []


def is_norm(name: str) -> bool:
    return any(word in name.lower() for word in ("norm", "ln_"))


@every_family
def test_a_headless_model_has_the_same_places(look, name):
    with_head = look(name).anatomy
    without = resolve(zoo.tiny(name, headless=True))
    assert without.unplaced == ()
    assert set(without.taps) == set(with_head.taps)
    assert set(with_head.matrices) - set(without.matrices) <= {Site(None, "w.head")}
    assert without.same_as == with_head.same_as


@every_family
def test_a_tied_head_is_not_a_second_matrix(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    head = model.get_output_embeddings()
    tied = head is None or head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert (Site(None, "w.head") in anatomy.matrices) == (not tied)


PARALLEL = {"phi", "gptj", "falcon_7b", "falcon_11b", "cohere", "cohere2", "stablelm_12b"}
PARALLEL_TWO_NORMS = {"gpt_neox", "falcon_40b"}
READS_RESIDUAL = {"opt_350m", "olmo2", "olmo3", *zoo.ENCODERS}


@every_family
def test_sites_that_are_one_tensor_are_known_as_one(look, name):
    seen = look(name)
    expected = {}
    for layer in seen.layers:
        start = Site(layer, "resid.in")
        if layer:
            expected[start] = Site(layer - 1, "resid.out")
        if name in READS_RESIDUAL:
            expected[Site(layer, "attn.in")] = expected.get(start, start)
            expected[Site(layer, "mlp.in")] = Site(layer, "resid.mid")
        if name in PARALLEL:
            expected[Site(layer, "mlp.in")] = Site(layer, "attn.in")
    assert seen.anatomy.same_as == expected
    parallel = name in PARALLEL | PARALLEL_TWO_NORMS
    assert (Site(0, "resid.mid") in seen.anatomy.taps) != parallel


def test_every_declared_model_type_has_a_small_model():
    declared = {t for family in all_families() for t in family.model_types}
    small = {zoo.config_of(name).model_type for name in zoo.NAMES}
    # skerry's own decoder has its tests in tests/redesign/test_variants_anatomy.py.
    assert declared - small <= {"ministral", "gemma3", "skerry"}


def test_a_family_is_found_by_model_type_and_an_unknown_one_is_none():
    assert family_of("qwen3").name == "qwen3"
    assert family_of("no-such-model") is None


def test_a_multi_modal_gemma_shows_its_text_model():
    import transformers

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.Gemma3Config(
        text_config=zoo.config_of("gemma3").to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    anatomy = resolve(model)
    assert anatomy.unplaced == ()
    assert anatomy.dims == resolve(zoo.tiny("gemma3")).dims
    assert set(anatomy.taps) == set(resolve(zoo.tiny("gemma3")).taps)


def test_ministral_is_declared_as_mistral():
    import transformers

    settings = zoo.config_of("llama").to_dict()
    del settings["model_type"]
    config = transformers.MinistralConfig(**settings)
    assert resolve(transformers.MinistralForCausalLM(config).eval()).family == "mistral"
