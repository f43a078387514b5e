"""What maps read in calibration, and the loss of a change of a seam, against definitions written out."""

from itertools import pairwise

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps
from skerry.anatomy.find_seams import check_seams, random_change
from skerry.anatomy.watch import capture
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, EmptyBatch
from skerry.impact.quantize import fake_quantize, observe
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.tame.reader_error import ReaderError
from skerry.tame.reading import Ask, ChannelRange, read_inputs, seam_abs_mean, seam_range
from skerry.tame.transform import SeamChange, folded


def batches_of(model, *, num=4, length=12, padding=None, seed=0):
    ids, keep = zoo.tokens(model, num_samples=num, length=length, padding=padding, seed=seed)
    return [Batch(ids, keep, torch.arange(num))]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "mixtral"])
@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_ranges_are_those_of_the_kept_tokens(name, padding):
    model = zoo.tiny(name)
    anatomy, [batch] = resolve(model), batches_of(model, padding=padding)
    maps = [d for d in dense_maps(anatomy) if not d.is_routed]
    readings = read_inputs(anatomy, maps, [batch], Ask(mean=True, tokens=True))
    whole = capture(anatomy, batch.input_ids, keep=batch.keep)
    for dense in maps:
        x = whole[anatomy.same_as.get(dense.reads, dense.reads)][batch.keep.reshape(-1)]
        found = readings[dense.name]
        assert found.range.low.equal(x.amin(0)) and found.range.high.equal(x.amax(0))
        assert torch.allclose(found.abs_mean, x.double().abs().mean(0), rtol=1e-6)
        assert torch.cat(found.token_high).equal(x.amax(1)) and torch.cat(found.token_low).equal(x.amin(1))
        assert found.num_rows == int(batch.keep.sum())


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_an_expert_reads_the_tokens_that_are_routed_to_it(name):
    model = zoo.tiny(name)
    anatomy, [batch] = resolve(model), batches_of(model, padding="right")
    downs = [d for d in dense_maps(anatomy) if d.is_routed and "w.down" in d.pieces]
    readings = read_inputs(anatomy, downs, [batch])
    routed = sum(readings[d.name].num_rows for d in downs if d.layer == downs[0].layer)
    assert routed == 2 * int(batch.keep.sum())
    # Without padding the rows of a site are all of the expert's.
    [batch] = batches_of(model)
    readings, whole = read_inputs(anatomy, downs, [batch]), capture(anatomy, batch.input_ids)
    for dense in downs:
        if (x := whole.get(dense.reads._replace(expert=dense.expert))) is not None:
            assert readings[dense.name].range.high.equal(x.amax(0))


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 7), max_size=3, unique=True), seed=st.integers(0, 5))
def test_readings_do_not_depend_on_how_the_text_is_cut_into_batches(cuts, seed):
    model = zoo.tiny("llama")
    anatomy, [whole] = resolve(model), batches_of(model, num=8, padding="right")
    edges = [0, *sorted(cuts), 8]
    parts = [Batch(whole.input_ids[a:b], whole.keep[a:b], whole.sample[a:b]) for a, b in pairwise(edges)]
    maps, ask = dense_maps(anatomy), Ask(num_rows=20, mean=True, sizes=True)
    one, many = (read_inputs(anatomy, maps, text, ask, seed=seed) for text in ([whole], parts))
    for name, reading in one.items():
        other = many[name]
        assert torch.allclose(reading.range.low, other.range.low, atol=1e-5)
        assert torch.allclose(reading.rows, other.rows, atol=1e-5) and len(reading.rows) == 20
        assert torch.allclose(reading.abs_mean, other.abs_mean, rtol=1e-5)
        assert reading.sizes.count == other.sizes.count


def test_maps_that_read_one_tensor_share_a_reading_and_each_batch_is_run_once():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    batches = batches_of(model) + batches_of(model, seed=1)
    calls = []
    handle = anatomy.trunk.register_forward_hook(lambda *_: calls.append(1))
    readings = read_inputs(anatomy, dense_maps(anatomy), batches)
    handle.remove()
    assert len(calls) == 2
    q, k, o = (readings[f"model.layers.0.self_attn.{n}_proj"] for n in "qko")
    assert q is k and q is not o


def test_the_row_with_the_largest_value_is_kept_with_its_place():
    model = zoo.tiny("opt")
    anatomy, [batch] = resolve(model), batches_of(model)
    down = next(d for d in dense_maps(anatomy) if "w.down" in d.pieces)
    spike = read_inputs(anatomy, [down], [batch], Ask(spike=True))[down.name].spike
    x = capture(anatomy, batch.input_ids)[down.reads]
    row = int(x.abs().amax(1).argmax())
    assert (spike.sample, spike.position) == divmod(row, 12) and spike.row.equal(x[row])


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_a_calibration_that_is_not_finite_names_the_map(value, said):
    model = zoo.tiny("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = value
    anatomy = resolve(zoo.tiny("llama"))
    anatomy.model.load_state_dict(model.state_dict())
    maps = [d for d in dense_maps(anatomy) if d.layer == 1]
    with pytest.raises(BrokenModel, match=rf"{said}.*model\.layers\.1\.self_attn\.q_proj"):
        read_inputs(anatomy, maps, batches_of(model))


def test_nan_names_the_input_and_the_position():
    model = zoo.tiny("gpt2")
    anatomy = resolve(model)
    with torch.no_grad():
        model.transformer.wte.weight[17] = float("nan")
    ids = torch.full((3, 5), 9)
    ids[2, 4] = 17
    batch = Batch(ids, torch.ones(3, 5, dtype=torch.bool), torch.tensor([10, 11, 12]))
    with pytest.raises(BrokenModel, match="input 12, position 4"):
        read_inputs(anatomy, dense_maps(anatomy), [batch])


def test_no_text_is_refused():
    model = zoo.tiny("llama")
    empty = Batch(torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.bool), torch.arange(1))
    for text in ([], [empty]):
        with pytest.raises(EmptyBatch, match="no token"):
            read_inputs(resolve(model), [], text)


def test_a_changed_range_is_the_range_of_the_changed_values():
    x = torch.randn(50, 6)
    z, s = torch.randn(6), torch.rand(6) + 0.5
    after = ChannelRange(x.amin(0), x.amax(0)).changed(shift=z, scale=s)
    y = (x - z) / s
    assert torch.allclose(after.low, y.amin(0)) and torch.allclose(after.high, y.amax(0))
    assert after.width == pytest.approx(float(y.max() - y.min()))


def seam_setting(name, *, num_rows=1000):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    seams, batches = check_seams(anatomy), batches_of(model)
    maps = list({d.name: d for s in seams for d in s.readers}.values())
    readings = read_inputs(anatomy, maps, batches, Ask(num_rows=num_rows, mean=True))
    return anatomy, seams, batches, readings, frozenset(d.name for d in dense_maps(anatomy))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "mixtral", "qwen2_moe", "phi3"])
def test_without_rounding_every_change_costs_nothing(name):
    _, seams, _, readings, quantized = seam_setting(name)
    generator = torch.Generator().manual_seed(0)
    for seam in seams:
        error = ReaderError(seam, readings, Scheme(), quantized)
        if error.num_values:
            assert error(**random_change(seam, generator)) <= 1e-10 * error.power
            assert error() == 0.0


@pytest.mark.parametrize("bits", ["w8a8", "w4a16-g16", "w8a8-tensor", "w8a8-static-asym"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_loss_is_what_the_folded_and_simulated_model_makes(name, bits):
    """The seam's change is folded, its readers rounded as the scheme says, and their outputs compared, by hand."""
    anatomy, seams, _, readings, quantized = seam_setting(name)
    scheme = Scheme.parse(bits)
    generator = torch.Generator().manual_seed(1)
    for seam in seams.of("norm", "value"):
        scale = random_change(seam, generator)["scale"]
        loss = ReaderError(seam, readings, scheme, quantized)(scale=scale)
        rows = readings[seam.readers[0].name].rows
        wanted = [rows @ d.weight.T for d in seam.readers]
        squares = 0.0
        with folded(anatomy, seams, [SeamChange(seam.name, scale=scale)]):
            x = rows / scale[seam.spread].float()
            grid = None if scheme.inputs is None or scheme.inputs.dynamic else observe(x, scheme.inputs)
            x = x if scheme.inputs is None else fake_quantize(x, scheme.inputs, grid)
            for dense, y in zip(seam.readers, wanted, strict=True):
                w = Simulation(scheme).rounded_weight(dense)
                squares += float((x @ w.T - y).double().square().sum())
        # The largest |x| of a static range lies half-way between two levels, and its last bit decides.
        assert loss == pytest.approx(squares / sum(y.numel() for y in wanted), rel=5e-3)


def test_a_shift_is_priced_with_the_bias_that_it_needs():
    _, seams, _, readings, quantized = seam_setting("opt")
    seam = seams.named("0.norm.attn")
    error = ReaderError(seam, readings, Scheme.parse("w8a8-static-asym"), quantized)
    of = seam_range(seam, readings)
    centre = ((of.low + of.high) / 2).double()
    far = centre + 40.0
    assert error(shift=centre) < error() < error(shift=far)


def test_routers_cost_nothing_and_a_routed_reader_is_read_on_its_own_tokens():
    _, seams, _, readings, quantized = seam_setting("mixtral")
    seam = seams.named("0.norm.mlp")
    routers = [d for d in seam.readers if d.name not in quantized]
    assert routers and all("router" in next(iter(d.pieces)) for d in routers)
    error = ReaderError(seam, readings, Scheme.parse("w8a8"), quantized)
    experts = [d for d in seam.readers if d.is_routed]
    assert error.num_values == sum(len(readings[d.name].rows) * len(d.weight) for d in experts)
    # The tensor of the seam is seen whole by the router, not only by one expert.
    assert readings[routers[0].name].range.high.equal(seam_range(seam, readings).high)
    assert len(seam_abs_mean(seam, readings)) == seam.width
