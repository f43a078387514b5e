"""Routed experts: each one's tensors are its own, and together they make what the block writes."""

import pytest
import torch
import zoo
from torch.nn import functional as F
from torch.testing import assert_close

from skerry.anatomy import Site, capture, resolve, watch
from skerry.anatomy.model import run

routed = pytest.mark.parametrize("name", zoo.ROUTED)
EXACT = {"rtol": 1e-9, "atol": 1e-9}
PARTS = ("mlp.gate", "mlp.up", "mlp.down.in", "mlp.out")


@pytest.fixture(scope="module", params=zoo.ROUTED)
def seen(request):
    """(look, rows of every expert site)."""
    model = zoo.tiny(request.param, dtype=torch.float64, attention="eager")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model, length=16)
    sites = capture(anatomy, ids)
    rows = {}
    with watch(
        anatomy, on_activation=lambda site, x, r: rows.__setitem__(site, r) if r is not None else None
    ):
        run(anatomy, ids)
    return anatomy, sites, rows


def biases(anatomy, layer, expert):
    """(gate, up, down) biases of an expert; zero where the family has none."""
    experts = anatomy.experts[layer]
    if not hasattr(experts, "gate_up_proj_bias"):
        return 0.0, 0.0, 0.0
    both = experts.gate_up_proj_bias.detach()[expert]
    return both[::2], both[1::2], experts.down_proj_bias.detach()[expert]


def activated(anatomy, layer, gate, up):
    if "Oss" in type(anatomy.model).__name__:
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    return F.silu(gate) * up


def routing(anatomy, layer, logits):
    """(experts of each token, their weights), from the router's logits and the family's rule."""
    config = anatomy.config
    k = config.num_experts_per_tok
    if "Oss" in type(anatomy.model).__name__:
        top = logits.topk(k, dim=-1)
        return top.indices, top.values.softmax(-1)
    top = logits.float().softmax(-1).topk(k, dim=-1)
    renormalized = getattr(config, "norm_topk_prob", True)
    return top.indices, top.values / top.values.sum(-1, keepdim=True) if renormalized else top.values


def test_every_expert_has_its_own_sites(seen):
    anatomy, sites, _ = seen
    routed_layers = set(anatomy.experts)
    listed = {s for s in anatomy.activation_sites if s.expert is not None and s.expert < anatomy.num_experts}
    assert listed == {
        Site(layer, part, e) for layer in routed_layers for part in PARTS for e in range(anatomy.num_experts)
    }
    for layer in routed_layers:
        for part in ("w.gate", "w.up", "w.down"):
            matrices = [anatomy.weight(Site(layer, part, e)) for e in range(anatomy.num_experts)]
            assert len({m.data_ptr() for m in matrices}) == anatomy.num_experts
    assert {s for s in sites if s.expert is not None} <= set(anatomy.activation_sites)


def test_an_experts_projections_read_and_write_what_its_sites_show(seen):
    anatomy, sites, rows = seen
    for layer in anatomy.experts:
        x = sites[Site(layer, "mlp.in")]
        for e in range(anatomy.num_experts):
            own = {part: sites[Site(layer, part, e)] for part in PARTS}
            b_gate, b_up, b_down = biases(anatomy, layer, e)
            w = {part: anatomy.weight(Site(layer, part, e)) for part in ("w.gate", "w.up", "w.down")}
            mine = x[rows[Site(layer, "mlp.up", e)]]
            assert_close(mine @ w["w.gate"].T + b_gate, own["mlp.gate"], **EXACT)
            assert_close(mine @ w["w.up"].T + b_up, own["mlp.up"], **EXACT)
            mid = activated(anatomy, layer, own["mlp.gate"], own["mlp.up"])
            assert_close(mid, own["mlp.down.in"], **EXACT)
            assert_close(own["mlp.down.in"] @ w["w.down"].T + b_down, own["mlp.out"], **EXACT)


def test_an_experts_rows_are_the_tokens_that_the_router_sent_to_it(seen):
    anatomy, sites, rows = seen
    for layer in anatomy.experts:
        logits = sites[Site(layer, "mlp.router")]
        experts, _ = routing(anatomy, layer, logits)
        for e in range(anatomy.num_experts):
            expected = (experts == e).any(-1).nonzero().flatten()
            for part in PARTS:
                assert torch.equal(rows[Site(layer, part, e)], expected)
                assert sites[Site(layer, part, e)].shape[0] == len(expected)


def test_the_router_reads_what_the_block_reads(seen):
    anatomy, sites, _ = seen
    for layer in anatomy.experts:
        router = anatomy.model.get_submodule(f"model.layers.{layer}.mlp")
        bias = getattr(getattr(router, "router", None), "bias", None)
        told = sites[Site(layer, "mlp.in")] @ anatomy.weight(Site(layer, "w.router")).T
        told = told if bias is None else told + bias.detach()
        assert_close(told, sites[Site(layer, "mlp.router")], **EXACT)


def test_the_weighted_experts_and_the_shared_one_make_the_block(seen):
    anatomy, sites, rows = seen
    for layer in anatomy.experts:
        x, total = sites[Site(layer, "mlp.in")], torch.zeros_like(sites[Site(layer, "mlp.out")])
        experts, weights = routing(anatomy, layer, sites[Site(layer, "mlp.router")])
        for e in range(anatomy.num_experts):
            mine = rows[Site(layer, "mlp.out", e)]
            share = (weights * (experts == e)).sum(-1)[mine]
            total[mine] += share[:, None] * sites[Site(layer, "mlp.out", e)]
        shared = Site(layer, "mlp.out", anatomy.num_experts)
        if shared in sites:
            gate = torch.sigmoid(x @ anatomy.weight(Site(layer, "w.router.shared")).T)
            total += gate * sites[shared]
        assert_close(total, sites[Site(layer, "mlp.out")], rtol=1e-5, atol=1e-6)


def test_the_shared_expert_counts_behind_the_routed_ones_and_sees_every_token(look):
    seen = look("qwen2_moe")
    layer, e = 0, seen.anatomy.num_experts
    x = seen.at(layer, "mlp.in")
    gate, up, mid, out = (seen.at(layer, part, e) for part in PARTS)
    assert_close(x @ seen.weight(layer, "w.gate", e).T, gate, **EXACT)
    assert_close(x @ seen.weight(layer, "w.up", e).T, up, **EXACT)
    assert_close(F.silu(gate) * up, mid, **EXACT)
    assert_close(mid @ seen.weight(layer, "w.down", e).T, out, **EXACT)


@pytest.mark.parametrize(("name", "dense"), [("qwen2_moe", 1), ("qwen3_moe", 0)])
def test_a_dense_layer_among_routed_ones_has_dense_sites(look, name, dense):
    seen = look(name)
    assert sorted(seen.anatomy.experts) == [layer for layer in seen.layers if layer != dense]
    for part in ("mlp.gate", "mlp.up", "mlp.down.in", "mlp.out", "w.gate", "w.up", "w.down"):
        places = {s for s in {*seen.anatomy.activation_sites, *seen.anatomy.matrices} if s.part == part}
        assert [s for s in places if s.layer == dense] == [Site(dense, part)]
    assert seen.at(dense, "mlp.router") is None


@routed
def test_watching_experts_leaves_the_result_and_the_dispatch_alone(tiny_model, name):
    model = tiny_model(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    implementation = model.config._experts_implementation
    plain = run(anatomy, ids).last_hidden_state
    with watch(anatomy, ["mlp.down.in"], on_activation=lambda *_: None):
        assert model.config._experts_implementation == "skerry"
        watched = run(anatomy, ids).last_hidden_state
    assert model.config._experts_implementation == implementation
    assert_close(watched, plain, rtol=1e-5, atol=1e-6)
    assert torch.equal(run(anatomy, ids).last_hidden_state, plain)


@routed
def test_parts_without_experts_leave_the_dispatch_to_the_model(tiny_model, name):
    model = tiny_model(name)
    anatomy = resolve(model)
    with watch(anatomy, ["resid.out", "attn.in"], on_activation=lambda *_: None):
        assert model.config._experts_implementation != "skerry"


def test_an_expert_that_gets_no_token_is_not_shown(tiny_model):
    model = tiny_model("mixtral")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model, num_samples=1, length=1)
    shown = {s.expert for s in capture(anatomy, ids, ["mlp.down.in"]) if s.layer == 0}
    assert len(shown) == model.config.num_experts_per_tok < anatomy.num_experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@routed
def test_half_precision_experts_agree_with_the_models_own(tiny_model, name, dtype):
    model = tiny_model(name, dtype=dtype)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    plain = run(anatomy, ids).last_hidden_state.float()
    with watch(anatomy, on_activation=lambda *_: None):
        watched = run(anatomy, ids).last_hidden_state.float()
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert_close(watched, plain, rtol=tolerance, atol=tolerance)
