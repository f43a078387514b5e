"""Taming methods against their formulas, planted outliers, and what other tools get wrong."""

import copy

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps
from skerry.anatomy.find_seams import check_seams
from skerry.anatomy.seams import NormWriter
from skerry.anatomy.watch import capture
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, NotPossible, UnknownOption
from skerry.impact.quantize import fake_quantize, observe
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.tame.method import Job
from skerry.tame.methods.awq import SHRINK, awq_scale, clip_weight
from skerry.tame.methods.os import QUANTILES, clip_range, gain_of
from skerry.tame.methods.smoothquant import smooth_scale, weight_max
from skerry.tame.reading import Ask, read_inputs, seam_range
from skerry.tame.register import METHODS
from skerry.tame.scale_search import fill_dead
from skerry.tame.transform import SeamChange, Transform, outputs, relative_error, verify

TABLE = "seam kind layer site threshold threshold_low scale_min scale_max num_scaled shift_max range_before range_after loss_before loss_after candidates seconds skipped"

# Families without a norm whose scale can be undone: no gain, a norm behind the sublayer, a shortcut inside a module.
WITHOUT_GAINS = ("opt_350m", "olmo", "olmo2", "olmo3", "distilbert")


def job_of(model, bits="w8a8", *, num=6, length=12, padding=None, **options):
    """A job on a small model, or on the zoo's of that name."""
    model = zoo.tiny(model) if isinstance(model, str) else model
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, num_samples=num, length=length, padding=padding)
    batches = [Batch(ids[i : i + 3], keep[i : i + 3], torch.arange(i, i + 3)) for i in range(0, num, 3)]
    return Job(anatomy, check_seams(anatomy), batches, Scheme.parse(bits), options=options)


def find(name, model, bits="w8a8", **options):
    job = job_of(model, bits, **options)
    return job, METHODS[name].find(job)


def rounding_error(job, found, ids=None):
    """Relative error of the logits of the rounded model, its changes folded into a copy, against the model as it is."""
    ids = zoo.tokens(job.anatomy.model, num_samples=8, seed=7)[0] if ids is None else ids
    before = outputs(job.anatomy, ids)
    anatomy = resolve(copy.deepcopy(job.anatomy.model))
    Transform(found.changes).fold(anatomy, check_seams(anatomy))
    kept = {"keep_columns": found.keep_columns, "keep_entries": found.keep_entries, "clip": found.clip}
    with Simulation(job.scheme, weights=found.weights, grids=found.grids, **kept).open(anatomy):
        return relative_error(outputs(anatomy, ids), before)


@pytest.mark.parametrize("method", ["smoothquant", "awq", "os"])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_transform_is_exact_on_every_family_or_refused_by_name(name, method):
    job = job_of(name, padding="right")
    before = {k: v.clone() for k, v in job.anatomy.model.state_dict().items()}
    if method != "awq" and name in WITHOUT_GAINS:
        with pytest.raises(NotPossible, match=f"{method} changes the scale on seams of the kind norm"):
            METHODS[method].find(job)
        return
    found = METHODS[method].find(job)
    assert all(v.equal(before[k]) for k, v in job.anatomy.model.state_dict().items())
    rows = found.rows["seam_changes"]
    changed = {row["seam"] for row in rows if row["skipped"] is None}
    assert changed == {c.seam for c in found.changes} and all(list(r) == TABLE.split() for r in rows)
    transform, ids = Transform(found.changes), zoo.tokens(job.anatomy.model)[0]
    if found.changes:
        assert transform.prove(job.anatomy, job.seams) <= 1e-10
    old = outputs(job.anatomy, ids)
    transform.fold(job.anatomy, job.seams)
    assert verify(job.anatomy, old, ids).stored <= 2e-6


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("os+") and m != "retrofit"])
def test_no_method_changes_the_model_or_takes_an_option_it_does_not_have(method):
    job = job_of("llama", "w8a8-tensor")
    before = {k: v.clone() for k, v in job.anatomy.model.state_dict().items()}
    METHODS[method].find(job)
    after = job.anatomy.model.state_dict()
    assert list(after) == list(before) and all(v.equal(before[k]) for k, v in after.items())
    job.options = {"alhpa": 1}
    with pytest.raises(UnknownOption, match=f"{method} has no option 'alhpa'"):
        METHODS[method].find(job)


# SmoothQuant


def test_two_channels_by_hand():
    """max|X| = 10 and 0.1, max|W| = 0.1 and 1: s = sqrt(10 / 0.1) = 10 and sqrt(0.1 / 1) = 0.316."""
    scale = smooth_scale(torch.tensor([10.0, 0.1]), torch.tensor([0.1, 1.0]), 0.5)
    assert torch.allclose(scale, torch.tensor([10.0, 0.1**0.5]).double())


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=8))
def test_at_one_half_inputs_and_weights_get_the_same_range_and_at_one_inputs_get_range_one(sizes):
    x, w = (torch.tensor(t, dtype=torch.float64) for t in zip(*sizes, strict=True))
    half = smooth_scale(x, w, 0.5)
    assert torch.allclose(x / half, w * half)
    assert torch.allclose(x / smooth_scale(x, w, 1.0), torch.ones_like(x))
    assert torch.allclose(w * smooth_scale(x, w, 0.0), torch.ones_like(x))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "phi3"])
def test_its_scales_are_the_formula_over_all_tokens_and_all_readers(name):
    job, found = find("smoothquant", name, guard=False, alpha=0.7, kinds="norm+value")
    seen = [capture(job.anatomy, b.input_ids) for b in job.batches]
    for change in found.changes:
        seam = job.seams.named(change.seam)
        x = torch.cat([s[seam.site] for s in seen]).abs().amax(0).double()
        w = torch.stack([d.weight.abs().amax(0) for d in seam.readers]).amax(0).double()
        heads = [seam.pool(t) for t in (x, w)]
        # The pass over the text may compute products with fewer digits: a percent of the range.
        assert torch.allclose(change.scale, heads[0] ** 0.7 / heads[1] ** 0.3, rtol=0.01)
    assert len(found.changes) == len(job.seams.of("norm", "value"))


def test_padding_does_not_count():
    model = zoo.tiny("opt")
    job = job_of(model, padding="right", guard=False)
    plain = METHODS["smoothquant"].find(job)
    for batch in job.batches:
        batch.input_ids[~batch.keep] = 55
    other = METHODS["smoothquant"].find(job)
    assert all(a.scale.equal(b.scale) for a, b in zip(plain.changes, other.changes, strict=True))


def test_dead_channels_widen_no_grid():
    x, w = torch.tensor([4.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, 0.0])
    scale = smooth_scale(x, w, 0.5)
    assert scale.tolist() == [2.0, 2.0, 2.0, 2.0]
    dead = torch.ones(2, dtype=torch.bool)
    assert fill_dead(torch.zeros(2), small=dead, large=~dead).tolist() == [1.0, 1.0]


def test_an_off_centre_channel_is_scaled_by_its_size_and_not_by_its_spread():
    """Channels near 25, -40 and 30 as other tools under-scale them: max - min of such a channel is small."""
    model = zoo.tiny("opt")
    with torch.no_grad():
        for block in model.model.decoder.layers:
            for norm, readers in (
                (
                    block.self_attn_layer_norm,
                    [getattr(block.self_attn, f"{n}_proj") for n in ("q", "k", "v")],
                ),
                (block.final_layer_norm, [block.fc1]),
            ):
                for channel, shift in ((3, 25.0), (11, -40.0), (20, 30.0)):
                    norm.bias[channel] += shift
                    for reader in readers:
                        reader.bias -= shift * reader.weight[:, channel]
    job, found = find("smoothquant", model)
    spread = copy.deepcopy(found)
    for i, change in enumerate(found.changes):
        seam = job.seams.named(change.seam)
        of = seam_range(seam, read_inputs(job.anatomy, seam.readers, job.batches))
        scale = smooth_scale((of.high - of.low), weight_max(seam), 0.5)
        spread.changes[i] = SeamChange(seam.name, scale=scale)
    plain = copy.deepcopy(found)
    plain.changes = []
    ours, theirs, nothing = (rounding_error(job, f) for f in (found, spread, plain))
    assert len(found.changes) == 4
    assert ours < 0.8 * min(theirs, nothing)


def test_a_seam_is_left_alone_where_rounding_is_better_without_and_the_row_says_so():
    """All of a range in weights of 4 bits is too much for them: a = 1 loses on its own loss."""
    bad = {"alpha": 1.0, "kinds": "norm+up"}
    _, found = find("smoothquant", "llama", "w4a8", **bad)
    rows = found.rows["seam_changes"]
    skipped = [r for r in rows if r["skipped"] is not None]
    assert skipped and all(
        r["skipped"].startswith("its readers' outputs are nearest as they are") for r in skipped
    )
    assert all(any(n.startswith(r["seam"]) for n in found.notes) for r in skipped)
    assert {c.seam for c in found.changes}.isdisjoint(r["seam"] for r in skipped)
    for row in rows:
        assert row["loss_after"] <= row["loss_before"] and row["candidates"] == 2
    _, unguarded = find("smoothquant", "llama", "w4a8", guard=False, **bad)
    assert len(unguarded.changes) == len(rows)


def test_auto_is_never_above_a_fixed_alpha_on_its_loss():
    _, fixed = find("smoothquant", "llama", "w4a8", kinds="norm+up+value")
    _, auto = find("smoothquant", "llama", "w4a8", alpha="auto", kinds="norm+up+value")
    for one, many in zip(fixed.rows["seam_changes"], auto.rows["seam_changes"], strict=True):
        assert many["loss_after"] <= one["loss_after"] * (1 + 1e-9) and many["candidates"] == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 1.5}, "'alpha' is 1.5"),
        ({"alpha": "much"}, "a number from 0 to 1 or auto"),
        ({"kinds": "nrom"}, "'nrom'; did you mean 'norm'"),
        ({"guard": "maybe"}, "true or false"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(UnknownOption, match=said):
        find("smoothquant", "llama", **options)


def test_a_model_with_other_storage_is_not_silently_left_as_it_is():
    """GPT-2 keeps [in, out]: other tools report success and change nothing. A model without gains is refused with the reason."""
    _, found = find("smoothquant", "gpt2")
    assert len(found.changes) == 4 and all((c.scale != 1).all() for c in found.changes)
    with pytest.raises(
        NotPossible, match=r"smoothquant.*no norm with a gain.*has seams of the kind: up; the option 'kinds'"
    ):
        find("smoothquant", "olmo")
    assert len(find("smoothquant", "olmo", kinds="up")[1].changes) > 0


def test_an_expert_without_tokens_is_named():
    model = zoo.tiny("mixtral")
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[3] = 0.0
        model.model.layers[0].post_attention_layernorm.weight.abs_()
        # No token's logit of the other experts is below 0.
    job = job_of(model, kinds="up")
    routed = read_inputs(job.anatomy, dense_maps(job.anatomy), job.batches)
    unread = [s.name for s in job.seams.of("up") if routed[s.readers[0].name].range is None]
    found = METHODS["smoothquant"].find(job)
    told = [
        r["seam"] for r in found.rows["seam_changes"] if r["skipped"] == "no calibration token reaches it"
    ]
    assert told == unread
    assert all(any(name in note for note in found.notes) for name in unread)


def test_a_calibration_with_nan_is_refused_with_its_place():
    model = zoo.tiny("llama")
    job = job_of(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    for method in ("smoothquant", "awq", "os", "llm.int8", "clip", "super-weights"):
        with pytest.raises(BrokenModel, match="calibration met NaN in input 0, position 0: model.layers.1"):
            METHODS[method].find(job)


# AWQ


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), st.floats(0, 1))
def test_the_largest_and_the_smallest_scale_multiply_to_one(means, exponent):
    scale = awq_scale(torch.tensor(means), exponent)
    assert float(scale.max() * scale.min()) == pytest.approx(1.0)
    assert torch.allclose(awq_scale(torch.full((3,), means[0]), exponent), torch.ones(3).double())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mixtral", "bert"])
def test_the_planted_salient_channel_gets_the_largest_scale(name):
    """A norm's channel 40 times as large, its weights 40 times as small: rounding to nearest loses them."""
    model = zoo.tiny(name)
    seams = check_seams(resolve(model))
    seam = next(s for s in seams if isinstance(s.writer, NormWriter))
    scale = torch.ones(seam.free, dtype=torch.float64)
    scale[5] = 1 / 40
    seam.apply(scale=scale)
    job, found = find("awq", model, "w4a16", kinds=seam.kind)
    change = next(c for c in found.changes if c.seam == seam.name)
    assert int(change.scale.argmax()) == 5
    row = next(r for r in found.rows["seam_changes"] if r["seam"] == seam.name)
    assert row["loss_after"] < row["loss_before"] / 1.5 and row["candidates"] == 20


@pytest.mark.parametrize("bits", ["w8a16-g8", "w3a16", "w8a8"])
def test_on_experts_it_is_never_worse_than_rounding_on_its_own_loss(bits):
    """The router reads the seam too: other tools leave it out, and then AWQ is worse than doing nothing."""
    job, found = find("awq", "mixtral", bits)
    rows = found.rows["seam_changes"]
    assert all(r["loss_after"] <= r["loss_before"] for r in rows) and len(rows) == 14
    seam = job.seams.named("0.norm.mlp")
    assert any("w.router" in d.pieces for d in seam.readers)
    assert Transform(found.changes).prove(job.anatomy, job.seams) <= 1e-10


def test_it_needs_no_accelerator(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("Cannot access accelerator device when none is available")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    monkeypatch.setattr(torch.Tensor, "cuda", refuse)
    assert find("awq", "llama", "w4a16")[1].changes


@pytest.mark.parametrize("bits", ["w3a16", "w4a16-g8", "w4a16-tensor", "w4a16-asym"])
def test_clipped_weights_err_no_more_than_unclipped_ones_in_any_slice(bits):
    job = job_of("gpt2", bits)
    spec = job.scheme.weights
    dense = next(d for d in dense_maps(job.anatomy) if "w.up" in d.pieces)
    rows = read_inputs(job.anatomy, [dense], job.batches, Ask(num_rows=50))[dense.name].rows
    new, grid = clip_weight(dense, rows, spec)
    plain = fake_quantize(dense.weight.contiguous(), spec)
    size = {"tensor": None, "channel": rows.shape[1], "group": spec.group_size}[spec.granularity]
    if size is None:
        errors = [((w - dense.weight) @ rows.T).square().sum()[None] for w in (new, plain)]
    else:
        errors = [
            torch.stack(
                [
                    ((w - dense.weight)[:, i : i + size] @ rows[:, i : i + size].T).square().sum(1)
                    for i in range(0, rows.shape[1], size)
                ]
            )
            for w in (new, plain)
        ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all() and (errors[0] < errors[1] * 0.999).any()
    assert new.equal(fake_quantize(new, spec, grid))
    assert SHRINK[0] == 1.0


def test_with_clip_it_gives_rounded_weights_of_the_changed_model():
    job, found = find("awq", "llama", "w3a16", clip=True)
    _, plain = find("awq", "llama", "w3a16")
    assert not any(n.endswith(("q_proj", "k_proj")) for n in found.weights) and len(found.weights) == 10
    assert rounding_error(job, found) < rounding_error(job, plain)
    with pytest.raises(NotPossible, match="'clip' clips weights"):
        find("awq", "llama", "inputs=int8:sym:token", clip=True)


# Outlier Suppression


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "bert"])
def test_gains_move_into_the_weights_up_to_their_sign_and_zeros_stay(name):
    model = zoo.tiny(name)
    norm = next(s.writer for s in check_seams(resolve(model)) if isinstance(s.writer, NormWriter))
    with torch.no_grad():
        gain = getattr(norm.module, norm.key)
        gain[2], gain[4] = -norm.plus, -0.5 - norm.plus
    job, found = find("os", model, guard=False)
    transform = Transform(found.changes)
    assert transform.prove(job.anatomy, job.seams) <= 1e-10
    signs = {s.name: gain_of(s).sign() for s in job.seams if isinstance(s.writer, NormWriter)}
    transform.fold(job.anatomy, job.seams)
    for change in found.changes:
        seam = job.seams.named(change.seam)
        assert torch.allclose(gain_of(seam), signs[seam.name], atol=1e-6)
    assert any((s == 0).any() and (s < 0).any() for s in signs.values())


def test_a_token_of_its_own_size_is_clipped_from_a_static_range():
    """One token 200 times as large as the others: its quantile is left out, and what the others lose is less."""
    model = zoo.tiny("opt")
    job = job_of(model, "w8a8-static", num=60)
    dense = next(d for d in dense_maps(job.anatomy) if "w.down" in d.pieces)
    reading = read_inputs(job.anatomy, [dense], job.batches, Ask(num_rows=300, tokens=True))[dense.name]
    high = float(torch.cat(reading.token_high).max())
    assert clip_range(reading, [dense], job.scheme)[1] == pytest.approx(high, rel=0.5)
    reading.token_high[0][0] = 200 * high
    low, clipped = clip_range(reading, [dense], job.scheme)
    assert low >= float(torch.cat(reading.token_low).min()) and clipped < 2 * high


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["w8a8-static", "w4a4-static", "w6a6-static-asym"]), st.integers(0, 3))
def test_the_chosen_range_errs_no_more_than_any_quantile(bits, layer):
    job = job_of(zoo.tiny("llama", num_hidden_layers=4), bits, num=12)
    dense = next(d for d in dense_maps(job.anatomy) if d.layer == layer and "w.down" in d.pieces)
    reading = read_inputs(job.anatomy, [dense], job.batches, Ask(num_rows=200, tokens=True))[dense.name]
    spec, rows = job.scheme.inputs, reading.rows
    weight = fake_quantize(dense.weight.contiguous(), job.scheme.weights)

    def loss(low, high):
        ends = torch.tensor([[low], [high]])
        x = fake_quantize(rows, spec, observe(ends, spec))
        return float((x @ weight.T - rows @ dense.weight.T).double().square().sum())

    lows, highs = torch.cat(reading.token_low), torch.cat(reading.token_high)
    quantiles = [(float(lows.quantile(1 - q)), float(highs.quantile(q))) for q in QUANTILES]
    found = clip_range(reading, [dense], job.scheme)
    assert loss(*found) <= min(loss(*r) for r in quantiles) * (1 + 1e-4)


def test_static_ranges_are_given_for_every_map_and_a_scheme_without_them_is_told():
    job, found = find("os", "llama", "w8a8-static")
    assert set(found.grids) == {d.name for d in dense_maps(job.anatomy)}
    assert all(r["threshold"] is not None for r in found.rows["seam_changes"])
    _, dynamic = find("os", "llama", "w8a8")
    assert not dynamic.grids and any("no static range per tensor" in n for n in dynamic.notes)
    _, olmo = find("os", "olmo", "w8a8-static")
    assert olmo.grids and any("no gain was moved" in n for n in olmo.notes)
    with pytest.raises(NotPossible, match="no norm with a gain"):
        find("os", "olmo", "w8a8")
