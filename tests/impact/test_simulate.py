"""Quantization simulated: against a forward written by hand, on every layout, and gone without a trace."""

import copy
import sys

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps
from skerry.anatomy.model import run
from skerry.causes.outcome import last_hidden
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, UnknownOption
from skerry.impact.calibrate import calibrate
from skerry.impact.quantize import fake_quantize, observe
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.impact.simulate import Simulation, round_rows

NO_INTERFACE = ["bloom", "falcon_7b", "gptj", "mpnet"]


def batch_of(model, **options):
    ids, keep = zoo.tokens(model, **options)
    return Batch(ids, keep, torch.arange(len(ids)))


def hidden(anatomy, batch):
    return last_hidden(run(anatomy, batch.input_ids, batch.keep)).clone()


def opened(anatomy, batch, scheme, **options):
    with Simulation(Scheme.parse(scheme), **options).open(anatomy):
        return hidden(anatomy, batch)


def names(anatomy):
    return [d.name for d in dense_maps(anatomy)]


class ByHand(nn.Module):
    """int8 weights per output, int8 inputs per token, both symmetric: written from the definition."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127.5
        self.weight = torch.clamp(torch.round(linear.weight / scale), -128, 127) * scale
        self.bias = linear.bias

    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        x = torch.clamp(torch.round(x / scale), -128, 127) * scale
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("name", ["llama", "opt", "phi3", "bert"])
def test_w8a8_is_the_forward_that_is_written_by_hand(name):
    model = zoo.tiny(name)
    anatomy, batch = resolve(model), batch_of(model)
    by_hand = copy.deepcopy(model)
    inside = set(names(anatomy))
    for path in inside:
        parent, _, last = path.rpartition(".")
        setattr(by_hand.get_submodule(parent), last, ByHand(by_hand.get_submodule(path)))
    with torch.no_grad(), Simulation(Scheme.parse("w8a8")).open(anatomy):
        ours = model(batch.input_ids).logits
    with torch.no_grad():
        theirs = by_hand(batch.input_ids).logits
        plain = model(batch.input_ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (ours - plain).abs().max() > 1e-3


def test_kv8_is_eager_attention_with_rounded_keys_and_values(monkeypatch):
    model = zoo.tiny("llama", attention="eager")
    anatomy, batch = resolve(model), batch_of(model)
    ours = opened(anatomy, batch, "kv8")

    def by_hand(x):
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        scale = (high - low) / 255
        zero = torch.clamp(torch.round(-128 - low / scale), -128, 127)
        return (torch.clamp(torch.round(x / scale + zero), -128, 127) - zero) * scale

    source = sys.modules[type(model).__module__]
    eager = source.eager_attention_forward
    monkeypatch.setattr(
        source,
        "eager_attention_forward",
        lambda m, q, k, v, *args, **kwargs: eager(m, q, by_hand(k), by_hand(v), *args, **kwargs),
    )
    torch.testing.assert_close(ours, hidden(anatomy, batch), rtol=0, atol=1e-6)


def test_attention_products_round_query_key_probabilities_and_value(monkeypatch):
    model = zoo.tiny("llama", attention="eager")
    anatomy, batch = resolve(model), batch_of(model)
    spec = TensorSpec("int4", granularity="token")
    with Simulation(Scheme(attention=spec)).open(anatomy):
        ours = hidden(anatomy, batch)

    def by_hand(x):
        scale = x.abs().amax(-1, keepdim=True) / 7.5
        scale = torch.where(scale == 0, 1.0, scale)
        return torch.clamp(torch.round(x / scale), -8, 7) * scale

    def attention(module, query, key, value, mask, scaling, **_):
        key, value = (by_hand(x).repeat_interleave(2, dim=1) for x in (key, value))
        logits = by_hand(query) @ key.transpose(2, 3) * scaling
        future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        probs = by_hand(logits.masked_fill(future, -torch.inf).softmax(-1))
        return (probs @ value).transpose(1, 2).contiguous(), None

    monkeypatch.setattr(sys.modules[type(model).__module__], "eager_attention_forward", attention)
    torch.testing.assert_close(ours, hidden(anatomy, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_layout_can_be_quantized_and_is_left_as_it_was(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    batch = batch_of(model, padding="right")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clean = hidden(anatomy, batch)
    assert torch.equal(opened(anatomy, batch, "w16a16kv16"), clean), "16 bits change something"
    for scheme in ("w4a16", "w16a4", "w4a16-g8", "kv4", "w8a8-tensor"):
        grids = calibrate(anatomy, [batch], Scheme.parse(scheme))
        quantized = opened(anatomy, batch, scheme, grids=grids)
        assert torch.isfinite(quantized[batch.keep]).all()
        told = Simulation(Scheme.parse(scheme)).notes(anatomy)
        assert bool(told) == torch.equal(quantized, clean), scheme
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(hidden(anatomy, batch), clean)
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def test_everything_is_restored_after_an_error():
    model = zoo.tiny("mixtral")
    anatomy, batch = resolve(model), batch_of(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clean = hidden(anatomy, batch)
    with pytest.raises(KeyboardInterrupt), Simulation(Scheme.parse("w4a4kv4-attn")).open(anatomy):
        raise KeyboardInterrupt
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(hidden(anatomy, batch), clean)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "falcon_40b", "mixtral"])
@pytest.mark.parametrize("scheme", ["w4a4", "w4a4-tensor"])
def test_all_columns_kept_is_no_quantization(name, scheme):
    model = zoo.tiny(name)
    anatomy, batch = resolve(model), batch_of(model)
    kept = {d.name: torch.arange(d.weight.shape[1]) for d in dense_maps(anatomy)}
    grids = calibrate(anatomy, [batch], Scheme.parse(scheme))
    # Experts are run one after another while they are open, so sums over experts come in another order.
    torch.testing.assert_close(
        opened(anatomy, batch, scheme, keep_columns=kept, grids=grids),
        hidden(anatomy, batch),
        atol=1e-5,
        rtol=0,
    )


def test_kept_columns_do_not_stretch_the_range_of_the_others():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    (dense,) = [d for d in dense_maps(anatomy) if d.name.endswith("layers.0.mlp.down_proj")]
    with torch.no_grad():
        dense.weight[:, 5] = 100.0
    simulation = Simulation(Scheme.parse("w8a16"), keep_columns={dense.name: torch.tensor([5])})
    new = simulation.rounded_weight(dense)
    others = [i for i in range(dense.weight.shape[1]) if i != 5]
    assert torch.equal(new[:, 5], dense.weight[:, 5])
    expected = fake_quantize(dense.weight[:, others].contiguous(), Scheme.parse("w8a16").weights)
    assert torch.equal(new[:, others], expected)


def test_kept_entries_are_flat_and_stay_bit_for_bit():
    model = zoo.tiny("gpt2")
    anatomy = resolve(model)
    dense = dense_maps(anatomy)[0]
    width = dense.weight.shape[1]
    simulation = Simulation(Scheme.parse("w2a16"), keep_entries={dense.name: torch.tensor([3 * width + 7])})
    new, plain = simulation.rounded_weight(dense), Simulation(Scheme.parse("w2a16")).rounded_weight(dense)
    assert new[3, 7] == dense.weight[3, 7] != plain[3, 7]
    unlike = new != plain
    unlike[3] = False
    assert not unlike.any()


def test_only_the_named_maps_are_quantized_and_the_others_are_listed():
    model = zoo.tiny("llama")
    anatomy, batch = resolve(model), batch_of(model)
    name = "model.layers.1.mlp.down_proj"
    simulation = Simulation(Scheme.parse("w4a4"), only=frozenset({name}))
    with simulation.open(anatomy):
        ours = hidden(anatomy, batch)
    by_hand = copy.deepcopy(model)
    spec = Scheme.parse("w4a4")
    layer = by_hand.get_submodule(name)
    with torch.no_grad():
        layer.weight.copy_(fake_quantize(layer.weight, spec.weights))
    layer.register_forward_pre_hook(
        lambda _m, a: (fake_quantize(a[0].reshape(-1, a[0].shape[-1]), spec.inputs).reshape(a[0].shape),)
    )
    assert torch.equal(ours, hidden(resolve(by_hand), batch))
    told = simulation.skipped(anatomy)
    assert len(told) == len(names(anatomy)) - 1 + 1 and "lm_head: the head stays in full precision" in told


def test_routers_heads_and_strangers_are_listed_as_left_alone():
    told = "\n".join(Simulation(Scheme.parse("w8a8")).skipped(resolve(zoo.tiny("qwen2_moe"))))
    assert "lm_head: the head" in told and "mlp.gate: a router" in told
    told = "\n".join(Simulation(Scheme.parse("w8a8")).skipped(resolve(zoo.tiny("opt_350m"))))
    assert "model.decoder.project_in: no part of attention or feed-forward in any block" in told
    assert "lm_head: the head" in told  # tied to the embedding


def test_one_expert_alone_is_quantized():
    model = zoo.tiny("mixtral")
    anatomy, batch = resolve(model), batch_of(model)
    (dense,) = [d for d in dense_maps(anatomy) if d.name == "model.layers.0.mlp.experts.down_proj[2]"]
    with Simulation(Scheme.parse("w4a16"), only=frozenset({dense.name})).open(anatomy):
        inside = dense.parameter.detach().clone()
    for expert in range(4):
        same = torch.equal(inside[expert], dense.parameter[expert])
        assert same == (expert != 2)
    other = opened(anatomy, batch, "w16a4", only=frozenset({dense.name}))
    assert not torch.allclose(other, hidden(anatomy, batch), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt"])
def test_first_positions_stay_untouched(name):
    model = zoo.tiny(name)
    anatomy, batch = resolve(model), batch_of(model)
    clean = hidden(anatomy, batch)
    kept = opened(anatomy, batch, "w16a4kv4", keep_positions=3)
    torch.testing.assert_close(kept[:, :3], clean[:, :3], atol=1e-5, rtol=0)
    assert (kept[:, 3:] - clean[:, 3:]).abs().amax() > 1e-3
    everything = opened(anatomy, batch, "w16a4kv4", keep_positions=batch.input_ids.shape[1])
    torch.testing.assert_close(everything, clean, atol=1e-5, rtol=0)


def test_a_cache_counts_towards_positions():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    ids = batch_of(model).input_ids
    with torch.no_grad(), Simulation(Scheme.parse("w16a8"), keep_positions=4).open(anatomy):
        whole = model(ids).logits
        first = model(ids[:, :6], use_cache=True)
        rest = model(ids[:, 6:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 6:], atol=1e-4, rtol=0)


def test_padding_changes_nothing_for_the_tokens_beside_it():
    # Asymmetric and in float64: the extreme of a symmetric grid lies on a tie, and the length of the batch decides its last bit.
    model = zoo.tiny("bert", dtype=torch.float64)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model, num_samples=1, length=8)
    short = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(1))
    long = Batch(
        torch.cat([ids, torch.full((1, 5), 7)], 1),
        torch.cat([torch.ones(1, 8), torch.zeros(1, 5)], 1).bool(),
        torch.arange(1),
    )
    # One grid per tensor at hand, of inputs and of attention: padding would stretch it.
    scheme = "inputs=int4:asym:tensor,attention=int8:sym:token,kv=int4:asym:tensor"
    torch.testing.assert_close(
        opened(anatomy, short, scheme), opened(anatomy, long, scheme)[:, :8], atol=1e-5, rtol=0
    )


def test_inputs_are_clipped_before_they_are_rounded():
    model = zoo.tiny("llama")
    anatomy, batch = resolve(model), batch_of(model)
    name = "model.layers.1.mlp.down_proj"
    ours = opened(anatomy, batch, "w16a16", clip={name: (-0.1, 0.2)}, only=frozenset({name}))
    by_hand = copy.deepcopy(model)
    by_hand.get_submodule(name).register_forward_pre_hook(lambda _m, a: (a[0].clamp(-0.1, 0.2),))
    assert torch.equal(ours, hidden(resolve(by_hand), batch))


def test_weights_found_elsewhere_take_the_place_of_rounding():
    model = zoo.tiny("gpt2")
    anatomy = resolve(model)
    dense = dense_maps(anatomy)[0]
    given = torch.randn(dense.weight.shape)
    with Simulation(Scheme.parse("w4a16"), weights={dense.name: given}).open(anatomy):
        assert torch.equal(dense.weight, given)


# Refusals.


def test_a_group_that_does_not_divide_is_refused_before_the_forward():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    with pytest.raises(UnknownOption, match=r"q_proj reads 32 values, which groups of 24 do not divide"):
        Simulation(Scheme.parse("w4a16-g24")).open(anatomy).__enter__()
    with pytest.raises(UnknownOption, match="kv of a head reads 8 values, which groups of 3"):
        Simulation(Scheme.parse("kv=int4:asym:group3")).check(anatomy)


def test_a_static_range_without_a_grid_is_refused_and_says_what_finds_it():
    with pytest.raises(UnknownOption, match="static range and no grid was given; calibrate"):
        Simulation(Scheme.parse("w8a8-tensor")).check(resolve(zoo.tiny("llama")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"only": frozenset({"model.layers.0.mlp.down_prj"})},
            "only names 'model.layers.0.mlp.down_prj'.*did you mean",
        ),
        ({"keep_columns": {"model.layers.0.mlp.down_proj": torch.tensor([48])}}, "no channel 48; it has 48"),
        ({"keep_entries": {"model.layers.0.mlp.down_proj": torch.tensor([32 * 48])}}, "no entry 1536"),
        (
            {"weights": {"model.layers.0.mlp.down_proj": torch.zeros(3, 3)}},
            r"is \(3, 3\); the map's is \(32, 48\)",
        ),
        ({"keep_positions": -1}, "keep_positions is -1"),
    ],
)
def test_what_the_model_does_not_have_is_named(options, words):
    with pytest.raises(UnknownOption, match=words):
        Simulation(Scheme.parse("w8a8"), **options).check(resolve(zoo.tiny("llama")))


def test_a_static_range_of_the_cache_is_refused_and_not_taken_for_another():
    with pytest.raises(UnknownOption, match="only ranges of the tensor at hand"):
        Simulation(Scheme.parse("kv=int8:sym:tensor:static")).check(resolve(zoo.tiny("llama")))


@pytest.mark.parametrize("name", NO_INTERFACE)
def test_models_whose_attention_cannot_be_changed_are_told_and_named(name):
    model = zoo.tiny(name)
    (note,) = Simulation(Scheme.parse("kv8")).notes(resolve(model))
    assert type(model).__name__ in note and "cache of keys and values not quantized in blocks 0 to 1" in note


# Calibration.


def test_a_static_grid_covers_all_that_was_read():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    one, two = batch_of(model), batch_of(model, seed=1)
    scheme = Scheme.parse("w8a8-tensor")
    found = calibrate(anatomy, [one, two], scheme)
    assert list(found) == names(anatomy)
    seen = []
    name = "model.layers.1.mlp.down_proj"
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, a: seen.append(a[0].abs().max()))
    for batch in (one, two):
        hidden(anatomy, batch)
    handle.remove()
    assert found[name].scale.item() == pytest.approx(float(max(seen)) / 127.5, rel=1e-6)


def test_what_stays_in_full_precision_counts_for_no_static_range():
    model = zoo.tiny("llama")
    anatomy, batch = resolve(model), batch_of(model)
    scheme, name = Scheme.parse("w8a8-tensor"), "model.layers.0.mlp.down_proj"
    rows = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _m, a: rows.append(a[0].reshape(-1, 48))
    )
    hidden(anatomy, batch)
    handle.remove()
    size = rows[0].abs()
    widest = int(size.amax(0).argmax())
    others = size.clone()
    others[:, widest] = 0
    found = calibrate(anatomy, [batch], scheme, keep_columns={name: torch.tensor([widest])})
    assert found[name].scale.item() == pytest.approx(float(others.max()) / 127.5, rel=1e-6)
    limit = float(size.amax(1).sort().values[-3])
    found = calibrate(anatomy, [batch], scheme, keep_above={name: limit})
    assert found[name].scale.item() == pytest.approx(limit / 127.5, rel=1e-6)


def test_an_expert_that_no_token_reaches_gets_the_range_of_the_others():
    model = zoo.tiny("mixtral")
    anatomy = resolve(model)
    batch = batch_of(model, num_samples=1, length=1)
    found = calibrate(anatomy, [batch], Scheme.parse("w8a8-tensor"))
    assert set(found) == set(names(anatomy))
    assert all(torch.isfinite(grid.scale).all() and (grid.scale > 0).all() for grid in found.values())


def test_nan_in_calibration_names_the_input_and_the_block():
    model = zoo.tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    anatomy = resolve(model)
    ids = torch.full((3, 6), 7)
    ids[1, 4] = 5
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([10, 11, 12]))
    with pytest.raises(
        BrokenModel, match=r"NaN in input 11, position 4: model.layers.0.self_attn.q_proj of block 0"
    ):
        calibrate(anatomy, [batch], Scheme.parse("w8a8-tensor"))


def test_a_range_at_hand_needs_no_calibration_and_reads_nothing():
    def unread():
        raise AssertionError("was read")
        yield

    assert calibrate(resolve(zoo.tiny("llama")), unread(), Scheme.parse("w8a8")) == {}


# Rows that stay.


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.sampled_from(["tensor", "column"]), st.data())
def test_rows_that_stay_and_padding_do_not_move_the_grid_of_the_others(seed, num_rows, granularity, data):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 6, generator=g)
    flags = st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)
    stays, counts = torch.tensor(data.draw(flags)), torch.tensor(data.draw(flags))
    x[stays | ~counts] *= 1000
    spec = TensorSpec("int8", granularity=granularity)
    out = counts & ~stays
    new = round_rows(x, spec, None, stays=stays, counts=counts)
    if out.any():
        assert torch.equal(new[out], fake_quantize(x[out], spec, observe(x[out], spec)))
    else:
        assert torch.equal(new, x)
