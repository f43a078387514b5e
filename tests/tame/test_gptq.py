"""GPTQ against its definition written as least squares, in float64, and on whole models."""

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps, replace_weights
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, SkerryError, UnknownOption
from skerry.impact.quantize import Grid, fake_quantize, observe, round_trip
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.tame.gptq import gptq, gptq_model, row_errors

SPECS = {
    "channel": "int4:sym:channel",
    "asym": "int3:asym:channel",
    "tensor": "int4:sym:tensor",
    "group": "int4:asym:group8",
    "mse": "int3:sym:group8:mse",
    "fp8": "fp8_e4m3:channel",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
}


def layer(seed=0, *, rows=6, columns=32, tokens=200, dtype=torch.float64):
    """A weight and inputs with outlier channels, correlated."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mix = torch.eye(columns, dtype=torch.float64) + 0.3 * torch.randn(
        columns, columns, generator=generator, dtype=torch.float64
    )
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mix
    x[:, 3] *= 20
    return w.to(dtype), x.T @ x


def damped(gram, damping):
    h = gram.clone()
    dead = h.diagonal() == 0
    scale = h.diagonal()[~dead].mean()
    h.diagonal()[dead] = scale
    return h + damping * scale * torch.eye(len(h), dtype=h.dtype)


def naive_gptq(w0, gram, spec, damping, order=None):
    """Column by column; what is left is solved anew by least squares before each column."""
    num = w0.shape[1]
    order = torch.arange(num) if order is None else order
    h, q = damped(gram, damping), torch.zeros_like(w0)
    fixed_grid = spec.group_size is None or spec.number == "nvfp4" or order.tolist() != list(range(num))
    whole = observe(w0, spec)
    scales, zeros = [], []
    for turn, j in enumerate(order.tolist()):
        done, rest = order[:turn], order[turn:]
        lost = w0[:, done] - q[:, done]
        now = w0[:, rest] + lost @ h[done][:, rest] @ torch.linalg.inv(h[rest][:, rest])
        if not spec.group_size:
            grid = whole
        elif fixed_grid:
            grid = Grid(*(t[:, j // spec.group_size] for t in whole))
        else:
            if turn % spec.group_size == 0:
                found = observe(now[:, : spec.group_size].contiguous(), spec)
                scales.append(found.scale)
                zeros.append(found.zero_point)
            grid = Grid(scales[-1][:, 0], zeros[-1][:, 0])
        q[:, j] = round_trip(now[:, :1].clone(), spec, grid)[:, 0]
    return q


def with_better_rows(w0, q, gram, spec):
    nearest = fake_quantize(w0, spec)
    worse = row_errors(w0, q, gram) > row_errors(w0, nearest, gram)
    return torch.where(worse[:, None], nearest, q)


@pytest.mark.parametrize("block", [5, 8, 128])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_gptq_is_its_definition(spec, act_order, block):
    spec = TensorSpec.parse(spec)
    w, gram = layer(seed=block)
    order = gram.diagonal().argsort(descending=True, stable=True) if act_order else None
    truth = with_better_rows(w, naive_gptq(w, gram, spec, 0.01, order), gram, spec)
    found = gptq(w, gram, spec, block=block, act_order=act_order)
    torch.testing.assert_close(found.weight, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_weight_lies_on_the_grid_that_comes_with_it(spec, dtype):
    spec = TensorSpec.parse(spec)
    w, gram = layer(1, dtype=dtype)
    found = gptq(w, gram, spec)
    assert found.weight.dtype == dtype
    assert torch.equal(fake_quantize(found.weight, spec, found.grid), found.weight)
    assert [t.shape for t in found.grid] == [t.shape for t in observe(w, spec)]


@given(st.integers(0, 10_000), st.sampled_from(list(SPECS.values())), st.booleans())
@settings(deadline=None, max_examples=40)
def test_no_row_errs_more_than_rounded_to_nearest(seed, spec, act_order):
    spec = TensorSpec.parse(spec)
    w, gram = layer(seed)
    found = gptq(w, gram, spec, act_order=act_order)
    nearest = fake_quantize(w, spec)
    torch.testing.assert_close(found.error, row_errors(w, found.weight, gram))
    torch.testing.assert_close(found.error_nearest, row_errors(w, nearest, gram))
    assert bool((found.error <= found.error_nearest).all())
    assert torch.equal(found.weight[found.is_nearest], nearest[found.is_nearest])


def test_a_row_that_greed_makes_worse_is_rounded_to_nearest_and_named():
    spec = TensorSpec.parse("int2:sym:tensor")
    worse = 0
    for seed in range(20):
        w, gram = layer(seed, rows=20, columns=8)
        found = gptq(w, gram, spec)
        greedy = naive_gptq(w, gram, spec, 0.01)
        expected = row_errors(w, greedy, gram) > row_errors(w, fake_quantize(w, spec), gram)
        assert torch.equal(found.is_nearest, expected)
        worse += int(expected.sum())
    assert worse > 0


def test_it_errs_much_less_than_rounding_to_nearest_on_correlated_inputs():
    spec = TensorSpec.parse("int4:sym:channel")
    shares = []
    for seed in range(5):
        found = gptq(*layer(seed), spec)
        shares.append(float(found.error.sum() / found.error_nearest.sum()))
    assert max(shares) < 0.6


def test_orthogonal_inputs_give_rounding_to_nearest():
    spec = TensorSpec.parse("int4:asym:group8")
    w, _ = layer(2)
    gram = torch.diag(torch.arange(1, 33, dtype=torch.float64))
    assert torch.equal(gptq(w, gram, spec).weight, fake_quantize(w, spec))


@pytest.mark.parametrize("act_order", [False, True])
def test_columns_that_no_token_reaches_are_rounded_to_nearest_and_change_nothing_else(act_order):
    spec = TensorSpec.parse("int4:sym:channel")
    w, gram = layer(3)
    w[:, [5, 20]] = 0.3
    dead = gram.clone()
    dead[[5, 20]] = 0.0
    dead[:, [5, 20]] = 0.0
    found = gptq(w, dead, spec, act_order=act_order)
    assert torch.equal(found.weight[:, [5, 20]], fake_quantize(w, spec)[:, [5, 20]])
    alive = [j for j in range(32) if j not in (5, 20)]
    grid = observe(w, spec)
    order = dead.diagonal()[alive].argsort(descending=True, stable=True) if act_order else None
    truth = naive_gptq_on(w[:, alive], dead[alive][:, alive], spec, grid, order)
    worse = row_errors(w[:, alive], truth, dead[alive][:, alive]) > row_errors(
        w[:, alive], round_trip(w[:, alive], spec, grid), dead[alive][:, alive]
    )
    truth = torch.where(worse[:, None], round_trip(w[:, alive], spec, grid), truth)
    torch.testing.assert_close(found.weight[:, alive], truth, rtol=0, atol=1e-10)


def naive_gptq_on(w0, gram, spec, grid, order):
    """The definition with a grid given."""
    h, q = damped(gram, 0.01), torch.zeros_like(w0)
    order = torch.arange(w0.shape[1]) if order is None else order
    for turn, j in enumerate(order.tolist()):
        done, rest = order[:turn], order[turn:]
        now = w0[:, rest] + (w0 - q)[:, done] @ h[done][:, rest] @ torch.linalg.inv(h[rest][:, rest])
        q[:, j] = round_trip(now[:, :1].clone(), spec, grid)[:, 0]
    return q


def test_an_expert_that_no_token_reached_is_rounded_to_nearest():
    spec = TensorSpec.parse("int4:sym:channel")
    w, gram = layer(4)
    found = gptq(w, torch.zeros_like(gram), spec)
    assert torch.equal(found.weight, fake_quantize(w, spec))
    assert float(found.error.sum()) == 0


def test_a_singular_gram_needs_damping():
    w, _ = layer(5)
    x = torch.randn(4, 32, dtype=torch.float64)
    with pytest.raises(UnknownOption, match="leaves the Gram matrix singular"):
        gptq(w, x.T @ x, TensorSpec.parse("int4"), damping=0.0)
    assert bool(gptq(w, x.T @ x, TensorSpec.parse("int4")).weight.isfinite().all())


# Whole models


def batches_of(model, *, num=3, samples=4, length=24, padding=None):
    found = []
    for i in range(num):
        ids, keep = zoo.tokens(model, num_samples=samples, length=length, padding=padding, seed=i)
        found.append(Batch(ids, keep, torch.arange(samples * i, samples * (i + 1))))
    return found


FAMILIES = ["gpt2", "llama", "falcon_40b", "gemma3", "qwen2_moe", "gpt_oss", "bert", "phi3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_map_of_a_model_is_rounded_and_the_model_stays(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = gptq_model(anatomy, batches_of(model, padding="right"), Scheme.parse("w4a8"))
    assert set(found) == {d.name for d in dense_maps(anatomy)}
    for dense in dense_maps(anatomy):
        result = found[dense.name]
        assert result.weight.shape == dense.weight.shape
        assert not torch.equal(result.weight, dense.weight)
        assert bool((result.error <= result.error_nearest).all())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_later_blocks_are_rounded_on_what_quantized_blocks_give():
    from skerry.anatomy.walk import Walk
    from skerry.impact.simulate import Simulation
    from skerry.measure.gram import block_grams, input_of

    model = zoo.tiny("llama")
    anatomy, batches, scheme = resolve(model), batches_of(zoo.tiny("llama")), Scheme.parse("w4a4")
    maps = dense_maps(anatomy)
    found = gptq_model(anatomy, batches, scheme)
    first = {d.name: found[d.name].weight for d in maps if d.layer == 0}
    second = [d for d in maps if d.layer == 1]
    walk = Walk(anatomy, batches)
    clean = Walk(anatomy, batches)
    walk.advance(walk.run(Simulation(scheme, weights=first, only=frozenset(first)).open(anatomy)))
    clean.advance(clean.run())
    grams, unquantized = block_grams(walk, second), block_grams(clean, second)
    for dense in second:
        gram = grams[input_of(anatomy, dense)].matrix
        expected = gptq(dense.weight, gram, scheme.weights)
        assert torch.equal(found[dense.name].weight, expected.weight)
    dense = second[0]
    other = gptq(dense.weight, unquantized[input_of(anatomy, dense)].matrix, scheme.weights)
    assert not torch.equal(other.weight, found[dense.name].weight)


def test_a_model_rounded_by_gptq_is_nearer_to_the_original_than_rounded_to_nearest():
    from skerry.impact.simulate import Simulation

    model = zoo.tiny("llama", hidden_size=64, intermediate_size=128)
    anatomy, scheme = resolve(model), Scheme.parse("w3a16")
    batches = batches_of(model, num=8, samples=8, length=32)
    found = gptq_model(anatomy, batches[:6], scheme)
    ids = torch.cat([b.input_ids for b in batches[6:]])
    errors = {}
    with torch.no_grad():
        clean = model(ids).logits
        for name, weights in {"gptq": {n: r.weight for n, r in found.items()}, "nearest": {}}.items():
            with Simulation(scheme, weights=weights).open(anatomy):
                errors[name] = float((model(ids).logits - clean).square().mean())
    assert errors["gptq"] < 0.9 * errors["nearest"]


class _Killed(Exception):
    pass


@pytest.mark.parametrize("killed_in", [0, 1, 2])
def test_a_killed_run_continues_at_the_block_it_was_in(killed_in):
    model = zoo.tiny("llama", num_hidden_layers=4)
    anatomy, batches, scheme = resolve(model), batches_of(model), Scheme.parse("w4a4")
    whole = gptq_model(anatomy, batches, scheme)
    stored, computed = {}, []

    def store(layer, results):
        if layer == killed_in + 1:
            raise _Killed
        stored[layer] = results

    with pytest.raises(_Killed):
        gptq_model(anatomy, batches, scheme, on_block=store)
    assert list(stored) == list(range(killed_in + 1))
    again = gptq_model(
        anatomy, batches, scheme, done=stored.items(), on_block=lambda layer, _: computed.append(layer)
    )
    assert computed == list(range(killed_in + 1, 4))
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[n].weight, whole[n].weight) for n in whole)


def test_an_input_that_is_no_number_is_named():
    model = zoo.tiny("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("nan")
    with pytest.raises(SkerryError, match=r"1\.attn\.in is NaN or infinite in channels \[3\]"):
        gptq_model(resolve(model), batches_of(model), Scheme.parse("w4a16"))


def test_only_the_maps_asked_for_are_rounded():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    maps = [d for d in dense_maps(anatomy) if "w.down" in d.pieces]
    found = gptq_model(anatomy, batches_of(model), Scheme.parse("w4a16"), maps=maps)
    assert set(found) == {d.name for d in maps}


def test_static_inputs_need_their_grids_and_take_them():
    from skerry.impact.calibrate import calibrate

    model = zoo.tiny("llama")
    anatomy, batches, scheme = resolve(model), batches_of(model), Scheme.parse("w8a8-static")
    with pytest.raises(UnknownOption, match="static range and no grid"):
        gptq_model(anatomy, batches, scheme)
    grids = calibrate(anatomy, batches, scheme)
    assert len(gptq_model(anatomy, batches, scheme, grids=grids)) == 14


def test_what_cannot_be_meant_is_refused():
    model = zoo.tiny("llama", tie_word_embeddings=False)
    anatomy, batches = resolve(model), batches_of(model)
    with pytest.raises(UnknownOption, match="leaves them alone"):
        gptq_model(anatomy, batches, Scheme.parse("w16a8"))
    with pytest.raises(EmptyBatch, match="no calibration data"):
        gptq_model(anatomy, [], Scheme.parse("w4a16"))
    with pytest.raises(UnknownOption, match="head and embedding stay"):
        gptq_model(anatomy, batches, Scheme.parse("w4a16"), maps=dense_maps(anatomy, head=True))
    with pytest.raises(UnknownOption, match="divide"):
        gptq_model(anatomy, batches, Scheme.parse("w4a16-g7"))


def test_replacing_by_the_result_is_what_the_simulation_shows():
    from skerry.impact.simulate import Simulation

    model = zoo.tiny("gpt2")
    anatomy, batches, scheme = resolve(model), batches_of(model), Scheme.parse("w4a16")
    found = gptq_model(anatomy, batches, scheme)
    with torch.no_grad():
        with replace_weights({d: found[d.name].weight for d in dense_maps(anatomy)}):
            replaced = model(batches[0].input_ids).logits
        with Simulation(scheme, weights={n: r.weight for n, r in found.items()}).open(anatomy):
            simulated = model(batches[0].input_ids).logits
    assert torch.equal(replaced, simulated)
