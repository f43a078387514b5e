"""Linear maps as they are stored: the same numbers as the weight sites, and inputs that can be looked at and changed."""

import pytest
import torch
import zoo

from skerry.anatomy import Site, resolve
from skerry.anatomy.dense import change_inputs, dense_maps, replace_weights, watch_inputs


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_projection_of_every_block_lies_in_one_map_and_shows_the_same_numbers(name):
    anatomy = resolve(zoo.tiny(name))
    maps = dense_maps(anatomy, routers=True, head=True)
    seen = set()
    for dense in maps:
        for part, rows in dense.pieces.items():
            sites = [
                s
                for s, b in anatomy.matrices.items()
                if s.part == part and b.parameter is dense.parameter and b.expert == dense.expert
            ]
            assert len(sites) == 1
            assert torch.equal(anatomy.weight(sites[0]), dense.weight[rows])
            seen.add(sites[0])
    parts = ("w.q", "w.k", "w.v", "w.o", "w.gate", "w.up", "w.down", "w.router", "w.router.shared", "w.head")
    assert seen == {s for s in anatomy.weight_sites if s.part in parts}
    assert len({d.name for d in maps}) == len(maps)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_what_a_map_reads_times_its_weight_is_what_it_writes(name):
    model = zoo.tiny(name, dtype=torch.float64)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    maps = [d for d in dense_maps(anatomy) if not d.is_routed]
    read, written, handles = {}, {}, []
    for dense in maps:

        def keep(_m, _a, out, name=dense.name):
            written[name] = out.detach().flatten(0, -2).clone()

        handles.append(dense.module.register_forward_hook(keep))
    with watch_inputs(anatomy, maps, lambda d, x: read.__setitem__(d.name, x.clone())), torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    for dense in maps:
        expected = read[dense.name] @ dense.weight.T + (0 if dense.bias is None else dense.bias)
        torch.testing.assert_close(written[dense.name], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", zoo.ROUTED)
def test_an_expert_shows_the_rows_that_are_routed_to_it(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    maps = [d for d in dense_maps(anatomy) if d.is_routed and "w.up" in d.pieces]
    shown = {}
    with watch_inputs(anatomy, maps, lambda d, x: shown.__setitem__(d, x.clone())), torch.no_grad():
        model(ids)
    by_layer = {}
    for dense, x in shown.items():
        by_layer[dense.layer] = by_layer.get(dense.layer, 0) + len(x)
    per_token = model.config.num_experts_per_tok
    assert by_layer and set(by_layer.values()) == {ids.numel() * per_token}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bert"])
def test_inputs_that_are_changed_change_the_output_and_leave_no_trace(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    maps = dense_maps(anatomy)
    with torch.no_grad():
        before = model(ids).logits
        with change_inputs(anatomy, dict.fromkeys(maps, lambda x: x)):
            assert torch.equal(model(ids).logits, before) or name in zoo.ROUTED
        with change_inputs(anatomy, {maps[-1]: torch.zeros_like}):
            assert not torch.allclose(model(ids).logits, before)
        assert torch.equal(model(ids).logits, before)


def test_a_changed_input_does_not_reach_the_other_readers_of_the_same_tensor():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    by_name = {d.name: d for d in dense_maps(anatomy)}
    seen = {}
    query, key = (by_name[f"model.layers.0.self_attn.{p}_proj"] for p in "qk")
    with (
        change_inputs(anatomy, {query: torch.zeros_like}),
        watch_inputs(anatomy, [query, key], lambda d, x: seen.__setitem__(d.name, float(x.abs().max()))),
        torch.no_grad(),
    ):
        model(ids)
    assert seen[query.name] == 0 and seen[key.name] > 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "phi3"])
def test_replaced_weights_come_back_bit_for_bit_even_after_an_error(name):
    model = zoo.tiny(name)
    maps = dense_maps(resolve(model))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="on the way"), replace_weights({d: d.weight * 2 for d in maps}):
        assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
        raise RuntimeError("on the way")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_bias_is_made_only_where_the_module_would_add_it():
    llama = dense_maps(resolve(zoo.tiny("llama")))[0]
    assert llama.bias is None and llama.can_take_bias
    assert torch.equal(llama.add_bias(), torch.zeros(len(llama.weight)))
    assert llama.bias is not None
    expert = next(d for d in dense_maps(resolve(zoo.tiny("mixtral"))) if d.is_routed)
    with pytest.raises(ValueError, match="cannot take a bias"):
        expert.add_bias()


def test_an_expert_reads_the_block_s_input_and_its_own_intermediate_tensor():
    maps = dense_maps(resolve(zoo.tiny("qwen3_moe")))
    reads = {d.name: d.reads for d in maps if d.is_routed and d.layer == 1}
    assert reads["model.layers.1.mlp.experts.gate_up_proj[2]"] == Site(1, "mlp.in")
    assert reads["model.layers.1.mlp.experts.down_proj[2]"] == Site(1, "mlp.down.in", 2)
