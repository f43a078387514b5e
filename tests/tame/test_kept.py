"""What stays in full precision, is cut off, or stands in the cache: planted columns, entries and tokens are found, and nothing else."""

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps
from skerry.anatomy.find_seams import check_seams
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, NotPossible, UnknownOption
from skerry.impact.quantize import observe
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.tame.method import Job
from skerry.tame.methods.prefix import Sizes, choose_prefix, is_causal
from skerry.tame.methods.super_weights import clip_at_z
from skerry.tame.reading import read_inputs
from skerry.tame.register import METHODS
from skerry.tame.transform import outputs, relative_error


def job_of(model, bits="w8a8", *, num=6, length=12, padding=None, **options):
    model = zoo.tiny(model) if isinstance(model, str) else model
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, num_samples=num, length=length, padding=padding)
    batches = [Batch(ids[i : i + 3], keep[i : i + 3], torch.arange(i, i + 3)) for i in range(0, num, 3)]
    return Job(anatomy, check_seams(anatomy), batches, Scheme.parse(bits), options=options)


def rounded(job, **kept):
    """Relative error of the logits of the rounded model."""
    ids = zoo.tokens(job.anatomy.model, num_samples=6)[0]
    before = outputs(job.anatomy, ids)
    with Simulation(job.scheme, **kept).open(job.anatomy):
        return relative_error(outputs(job.anatomy, ids), before)


# LLM.int8


def plant_column(model, channel=7, factor=60.0):
    """A norm's channel is large and its weights small: an outlier that changes nothing the model computes."""
    seams = check_seams(resolve(model))
    scale = torch.ones(seams.named("1.norm.attn").free, dtype=torch.float64)
    scale[channel] = 1 / factor
    seams.named("1.norm.attn").apply(scale=scale)
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mixtral", "falcon_7b"])
def test_planted_outlier_columns_are_kept_and_only_they(name):
    clean = METHODS["llm.int8"].find(job_of(name, threshold=12.0))
    job = job_of(plant_column(zoo.tiny(name)), threshold=12.0)
    found = METHODS["llm.int8"].find(job)
    readers = {
        d.name
        for d in job.seams.named("1.norm.attn").readers
        if d.name in {m.name for m in dense_maps(job.anatomy)}
    }
    new = {n for n in found.keep_columns if n not in clean.keep_columns}
    assert new <= readers and readers <= set(found.keep_columns)
    assert all(found.keep_columns[n].tolist() == [7] for n in new)
    assert "columns" in found.no_export or "channels" in found.no_export
    kept, plain = rounded(job, keep_columns=found.keep_columns), rounded(job)
    untouched = rounded(job_of(zoo.tiny(name)))
    assert kept < plain / 1.5 and kept < 1.3 * untouched


def test_kept_columns_are_as_in_full_precision():
    """The planted column alone carries the input: with it kept the rounded map gives what the map gives."""
    job = job_of(plant_column(zoo.tiny("opt")), threshold=12.0)
    found = METHODS["llm.int8"].find(job)
    dense = next(d for d in dense_maps(job.anatomy) if d.name in found.keep_columns)
    x = torch.zeros(5, dense.weight.shape[1])
    x[:, 7] = torch.randn(5) * 50
    wanted = dense.module(x)
    with Simulation(job.scheme, keep_columns=found.keep_columns).open(job.anatomy):
        got = dense.module(x)
    with Simulation(job.scheme).open(job.anatomy):
        lost = dense.module(x)
    assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-6) and not torch.allclose(lost, wanted, rtol=1e-3)


def test_a_threshold_of_zero_keeps_everything_and_a_high_one_nothing():
    job = job_of("llama", threshold=0.0)
    found = METHODS["llm.int8"].find(job)
    assert rounded(job, keep_columns=found.keep_columns) <= 1e-6
    job.options = {"threshold": 1e6}
    found = METHODS["llm.int8"].find(job)
    assert not found.keep_columns and found.no_export is None
    assert found.notes == ["no input channel reaches 1e+06: this is rounding to nearest"]


# Naive clipping


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral"])
def test_inputs_are_cut_at_their_quantile_within_a_percent(name):
    job = job_of(name, padding="right", quantile=0.97)
    found = METHODS["clip"].find(job)
    seen: dict = {}
    maps = [d for d in dense_maps(job.anatomy) if not d.is_routed]
    for batch in job.batches:
        from skerry.anatomy.watch import capture

        whole = capture(job.anatomy, batch.input_ids, keep=batch.keep)
        for d in maps:
            x = whole[job.anatomy.same_as.get(d.reads, d.reads)][batch.keep.reshape(-1)]
            seen.setdefault(d.name, []).append(x.reshape(-1))
    for d in maps:
        low, high = found.clip[d.name]
        exact = float(torch.cat(seen[d.name]).abs().quantile(0.97, interpolation="higher"))
        assert high == -low == pytest.approx(exact, rel=0.011)


def test_the_whole_quantile_clips_nothing_and_clipping_hurts_where_an_outlier_matters():
    model = plant_column(zoo.tiny("llama"))
    job = job_of(model, quantile=1.0)
    found = METHODS["clip"].find(job)
    readings = read_inputs(job.anatomy, dense_maps(job.anatomy), job.batches)
    assert all(high == float(readings[n].range.abs_max.max()) for n, (_, high) in found.clip.items())
    job.options = {"quantile": 0.96}
    assert rounded(job, clip=METHODS["clip"].find(job).clip) > 2 * rounded(job)


# Super weights


def plant_super_weight(model, *, layer=1, row=5, column=9, size=2.0, factor=300.0):
    """Neuron `column` is large, and one entry of its column of down makes all of it one output."""
    mlp = model.model.layers[layer].mlp
    with torch.no_grad():
        mlp.up_proj.weight[column] *= factor
        mlp.down_proj.weight[:, column] *= 1e-4
        mlp.down_proj.weight[row, column] = size
    return model


def test_a_planted_super_weight_is_found_at_its_coordinates():
    job = job_of(plant_super_weight(zoo.tiny("llama")), "w4a16")
    found = METHODS["super-weights"].find(job)
    width = job.anatomy.model.config.intermediate_size
    assert {n: e.tolist() for n, e in found.keep_entries.items()} == {
        "model.layers.1.mlp.down_proj": [5 * width + 9]
    }
    assert any("down_proj[5, 9] = 2 stays" in note for note in found.notes)
    assert "single weights" in found.no_export
    assert not METHODS["super-weights"].find(job_of("llama", "w4a16")).keep_entries


def test_a_second_super_weight_behind_the_first_is_found_too():
    """The second makes a smaller output out of a smaller input of the same map; zeroing the first lays it open."""
    model = plant_super_weight(zoo.tiny("llama"), factor=3000.0)
    plant_super_weight(model, row=20, column=30, factor=2900.0)
    job = job_of(model, "w4a16")
    width = job.anatomy.model.config.intermediate_size
    for rounds, wanted in ((5, 2), (1, 1)):
        job.options = {"rounds": rounds}
        found = METHODS["super-weights"].find(job).keep_entries["model.layers.1.mlp.down_proj"].tolist()
        assert set(found) <= {5 * width + 9, 20 * width + 30} and len(found) == wanted


def test_the_rest_is_clipped_at_z_and_kept_entries_stretch_no_grid():
    job = job_of(plant_super_weight(zoo.tiny("llama")), "w4a16", z=3.0)
    found = METHODS["super-weights"].find(job)
    assert set(found.weights) == {d.name for d in dense_maps(job.anatomy)}
    down = next(d for d in dense_maps(job.anatomy) if d.name == "model.layers.1.mlp.down_proj")
    whole = observe(down.weight.contiguous(), job.scheme.weights)
    assert found.weight_grids[down.name].scale[5] < whole.scale[5] / 3
    with Simulation(job.scheme, weights=found.weights, keep_entries=found.keep_entries).open(job.anatomy):
        assert float(down.weight[5, 9]) == 2.0
    with pytest.raises(NotPossible, match="'z' clips weights"):
        METHODS["super-weights"].find(job_of("llama", "inputs=int8:sym:token", z=2.0))


@pytest.mark.parametrize("bits", ["w4a16", "w4a16-tensor", "w4a16-g8"])
def test_clipping_at_z_is_mean_plus_z_deviations_of_each_slice(bits):
    weight = torch.randn(6, 16)
    spec = Scheme.parse(bits).weights
    new = clip_at_z(weight, 1.0, spec)
    slices = {"tensor": weight.reshape(1, -1), "channel": weight, "group": weight.reshape(-1, 8)}[
        spec.granularity
    ]
    limit = slices.abs().mean(1) + slices.abs().std(1, correction=0)
    assert torch.allclose(new.reshape(slices.shape).abs().amax(1), limit)
    inside = slices.abs() < limit[:, None]
    assert new.reshape(slices.shape)[inside].equal(slices[inside])


# Prefix


def plant_first_token(model):
    """Whatever stands at position 0 gets a huge neuron: the position embedding alone decides."""
    block = model.transformer.h[0]
    with torch.no_grad():
        direction = torch.randn(model.config.n_embd, generator=torch.Generator().manual_seed(3))
        direction -= direction.mean()
        model.transformer.wpe.weight[0] = 30 * direction
        unit = direction / direction.norm()
        block.mlp.c_fc.weight[:, 4] = 300 * unit / block.ln_2.weight
        block.mlp.c_fc.bias[4] = -300 * float((unit / block.ln_2.weight) @ block.ln_2.bias) - 1000
    return model


def test_the_token_that_takes_the_outlier_away_is_put_before_the_text():
    job = job_of(plant_first_token(zoo.tiny("gpt2")))
    found = METHODS["prefix"].find(job)
    assert found.prefix == (1,)
    assert found.notes == ["outlier tokens per input: 1.00, behind the prefix [1] 0.00"]
    assert "keys and values of a prefix" in found.no_export


def test_a_token_that_is_an_outlier_wherever_it_stands_cannot_be_taken_away():
    model = zoo.tiny("gpt2")
    block = model.transformer.h[0]
    with torch.no_grad():
        unit = torch.nn.functional.normalize(model.transformer.wte.weight[50], dim=0)
        block.mlp.c_fc.weight[:, 4] = 3000 * unit / block.ln_2.weight
        block.mlp.c_fc.bias[4] = -6000.0
        model.transformer.wte.weight[50] *= 40
    job = job_of(model)
    for batch in job.batches:
        batch.input_ids[:, 5] = 50
    found = METHODS["prefix"].find(job)
    assert found.prefix == () and found.no_export is None
    assert any("takes none away" in note for note in found.notes)


def test_without_outlier_tokens_the_prefix_is_empty_and_says_so():
    found = METHODS["prefix"].find(job_of("llama"))
    assert found.prefix == ()
    assert found.notes == [
        "no token's largest |x| at mlp.down.in is above 64 x the median: the prefix is empty"
    ]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_only_causal_models_take_a_prefix(name):
    assert is_causal(resolve(zoo.tiny(name))) == (name in zoo.DECODERS)
    if name in zoo.ENCODERS:
        with pytest.raises(NotPossible, match="it is an encoder"):
            METHODS["prefix"].find(job_of(name))


def test_the_prefix_holds_the_most_frequent_outlier_tokens_and_begins_the_sequence_last():
    ids = torch.tensor([[9, 5, 7, 5], [9, 5, 8, 7], [9, 8, 8, 5]])
    size = torch.tensor([[99.0, 99, 1, 99], [99, 99, 99, 99], [99, 1, 1, 1]])
    one = Sizes(Batch(ids, torch.ones(3, 4, dtype=torch.bool), torch.arange(3)), {0: size, 1: size * 0})
    limits = {0: 50.0, 1: 50.0}
    assert choose_prefix([one], limits, 1, 2) == (2,)
    assert choose_prefix([one], limits, 3, 2) == (5, 7, 2)
    assert choose_prefix([one], limits, 9, 2) == (5, 7, 8, 2)
    # Without a beginning-of-sequence token the one that begins the inputs counts.
    assert choose_prefix([one], limits, 2, None) == (5, 9)


@given(st.permutations(range(3)))
def test_the_prefix_does_not_hang_on_the_order_of_the_text(order):
    ids = torch.tensor([[4, 5, 6], [4, 6, 5], [4, 5, 5]])
    parts = [
        Sizes(
            Batch(ids[i : i + 1], torch.ones(1, 3, dtype=torch.bool), torch.tensor([i])),
            {0: torch.full((1, 3), 9.0)},
        )
        for i in order
    ]
    assert choose_prefix(parts, {0: 1.0}, 3, 1) == (5, 6, 1)


# GPTQ's door


def test_blocks_that_a_killed_run_had_finished_are_not_rounded_again():
    job = job_of("llama", "w4a16")
    kept, seen = {}, []
    job.remember = lambda layer, state: kept.__setitem__(layer, dict(state))
    whole = METHODS["gptq"].find(job)
    assert sorted(kept) == [0, 1]
    job.recalled, job.remember = {0: kept[0]}, lambda layer, _state: seen.append(layer)
    again = METHODS["gptq"].find(job)
    assert seen == [1]
    assert all(w.equal(again.weights[n]) for n, w in whole.weights.items())
    assert all(
        g.scale.equal(again.weight_grids[n].scale) and g.zero_point.equal(again.weight_grids[n].zero_point)
        for n, g in whole.weight_grids.items()
    )
    assert "of rounding to nearest" in whole.notes[0]


def test_rotations_say_what_they_leave_alone_and_refuse_where_nothing_turns():
    found = METHODS["rotation"].find(job_of("llama", "w4a4"))
    assert found.rotation is not None and set(found.rotation.heads) == {0, 1}
    assert METHODS["rotation"].find(job_of("llama", "w4a4", heads=False)).rotation.heads == {}
    with pytest.raises(UnknownOption, match="leave the method out"):
        METHODS["rotation"].find(job_of("llama", residual=False, heads=False))
    with pytest.raises(NotPossible, match="nothing can be rotated.*not rotated"):
        METHODS["rotation"].find(job_of("bert", heads=False))
    learned = METHODS["spinquant"].find(job_of("llama", "w4a4", steps=1))
    assert learned.rotation is not None and "learned in 1 steps" in learned.notes[-1]


def test_nan_is_refused_by_the_prefix_too():
    model = zoo.tiny("gpt2")
    job = job_of(model)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(BrokenModel, match="NaN"):
        METHODS["prefix"].find(job)
