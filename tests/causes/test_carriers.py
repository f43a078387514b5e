"""Lives of outliers: planted ones come back exactly, a course written by hand has the life its definition says, nothing comes from nothing."""

from itertools import product

import numpy as np
import pyarrow as pa
import pytest
import torch
import zoo
from numpy.testing import assert_allclose

from skerry.anatomy import resolve
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import capture
from skerry.causes.carriers import find_carriers
from skerry.causes.carriers_life import Channel
from skerry.causes.carriers_read import Course, Words
from skerry.corpus.batch import Batch
from skerry.measure import Meter
from skerry.outliers.find import find
from skerry.outliers.finding import Finding
from skerry.outliers.tabulate import activation_tables
from skerry.run.tables import from_rows

from .planted_chain import DELIMITER, FIRST, TYPES, inputs, plant_chain, untouched


def scanned(anatomy, batches):
    """Findings of the real scan, activations only."""
    meter = Meter(anatomy, parts=["resid.in", "resid.mid", "resid.out"])
    for batch in batches:
        meter.read(batch)
    return find(activation_tables(meter)).findings


def found_in(p):
    return find_carriers(p.anatomy, p.batches, scanned(p.anatomy, p.batches))


def check(p, found):
    (carrier,) = found.carriers
    assert (carrier.number, carrier.kind, carrier.channel, carrier.sign) == (
        0,
        "massive activation",
        p.channel,
        p.sign,
    )
    assert (carrier.birth_layer, carrier.exit_layer) == (p.birth_layer, p.exit_layer)
    assert p.birth_layer <= carrier.peak_layer and carrier.peak_layer < (p.exit_layer or 99)
    for here, truth, others in zip(found.places.carried, p.carried, found.places.others, strict=True):
        assert torch.equal(here[0], truth)
        assert len(others) and not torch.isin(others, truth).any()
    (row,) = found.tables["carriers"]
    assert row["num_tokens"] == sum(map(len, p.carried)) and row["recurrence"] == 1.0
    return carrier, row


@pytest.mark.parametrize(("model_type", "seed"), list(product(TYPES, range(10))))
def test_planted_life_comes_back_exactly(model_type, seed):
    p = plant_chain(model_type, seed, num_samples=8)
    carrier, row = check(p, found_in(p))
    assert_allclose(carrier.peak, p.value, rtol=0.02)
    assert_allclose(row["cancellation"], p.cancellation, atol=0.01)


@pytest.mark.parametrize("model_type", TYPES)
def test_tokens_that_stand_anywhere_and_lives_without_end_come_back(model_type):
    p = plant_chain(model_type, 10, ends=False, num_samples=8)
    _, row = check(p, found_in(p))
    assert row["exit_layer"] is None and row["cancellation"] is None
    for seed in (11, 12):
        check(p := plant_chain(model_type, seed, delimiter=True), found := found_in(p))
        tokens = [r for r in found.tables["carrier_tokens"] if r["token_id"] is not None]
        assert [(r["token_id"], r["count"], r["share"]) for r in tokens] == [(DELIMITER, 32, 1.0)]
        assert len({r["position"] for r in found.tables["carrier_tokens"]} - {None}) == 8


@pytest.mark.parametrize("model_type", TYPES)
def test_untouched_models_have_no_carrier(model_type):
    for seed in range(2):
        anatomy, batches = resolve(untouched(model_type, seed)), inputs(seed)
        found = find_carriers(anatomy, batches, scanned(anatomy, batches))
        assert found.carriers == [] and "nothing to follow" in found.notes[-1]
        assert [len(o) for o in found.places.others] == [8 * 24] * 2 and found.places.carried == [{}, {}]
        assert not any(found.tables.values())


def test_lifecycle_is_what_whole_activations_say(planted):
    p = planted("gpt2", 1)
    findings = scanned(p.anatomy, p.batches)
    found = find_carriers(p.anatomy, p.batches, findings, token_text=lambda ids: [f"<{i}>" for i in ids])
    seen = [capture(p.anatomy, b.input_ids, ["resid.in", "resid.mid", "resid.out"]) for b in p.batches]
    rows = found.tables["lifecycle"]
    assert [(r["layer"], r["site"]) for r in rows] == [
        (0, "resid.in"),
        *[(n, f"resid.{x}") for n in range(6) for x in ("mid", "out")],
    ]
    carries = torch.cat([b.input_ids.flatten() == FIRST for b in p.batches])
    for row in rows:
        x = torch.cat([s[Site(row["layer"], row["site"])] for s in seen]).double()
        v, norm = x[:, p.channel], x.norm(dim=1)
        for name, truth in {
            "value": v[carries].mean(), "other": v[~carries].abs().mean(),
            "low": v[carries].quantile(0.05), "high": v[carries].quantile(0.95),
            "norm": norm[carries].mean(), "norm_other": norm[~carries].mean(),
        }.items():  # fmt: skip
            assert_allclose(row[name], truth, rtol=1e-5)
    first, second = found.tables["carrier_tokens"]
    assert (first["position"], first["count"], first["token"]) == (0, 16, None)
    assert (second["token_id"], second["count"], second["token"]) == (FIRST, 16, f"<{FIRST}>")
    for name, table in found.tables.items():
        assert isinstance(from_rows(name, table), pa.Table)


def channel_of(curve, *, kind="massive activation", scale=1.0, num_samples=8, length=12, at=(0,), seed=0):
    """A course by hand: the channel at the tokens `at` of each input follows `curve` (embedding, then blocks), all else is noise."""
    rng = np.random.default_rng(seed)
    num = num_samples * length
    words = Words(
        np.zeros(num, np.int64), np.arange(num), *np.divmod(np.arange(num), length), np.zeros(num, np.int64)
    )
    stages = [Site(0, "resid.in"), *(Site(n, "resid.out") for n in range(len(curve) - 1))]
    scales = np.broadcast_to(scale, len(curve))
    values = {}
    for site, value, s in zip(stages, curve, scales, strict=True):
        x = s * rng.normal(size=num)
        x[np.isin(words.position, at)] += value * s
        values[site] = x[:, None].astype(np.float32)
    medians = {site: 0.67 * s for site, s in zip(stages, scales, strict=True)}
    return Channel(kind, words, Course((0,), values, {}, medians), 0)


@pytest.mark.parametrize(
    ("curve", "birth", "peak", "leaves"),
    [
        ([0, 0, 900, 900, 900, 0], 1, {1, 2, 3}, 4),
        ([900, 900, 900, 900, 900, 900], None, {0, 1, 2, 3, 4}, None),
        ([0, 200, 500, 1000, 990, 985], 0, {2}, None),  # several blocks: where it first stands out
        ([0, 30, 0, 1000, 990, 100], 2, {2}, 4),  # a flash before is another life
        ([0, 1000, 990, 980, 600, 280], 0, {0}, 4),  # in two steps: the one that halves
        ([0, 1000, 990, 100, 800, 800], 0, {0}, None),  # it comes back
        ([0, 0, 0, 0, 0, -700], 4, {4}, None),
        ([0, 1000, 700, 490, 340, 240], 0, {0}, None),  # it fades, no block takes it
    ],
)
def test_life_of_a_course_by_hand(curve, birth, peak, leaves):
    life = channel_of(curve).life(set(range(5)))
    assert (life.birth_layer, life.exit_layer) == (birth, leaves) and life.peak_layer in peak
    assert np.sign(life.peak) == np.sign(sum(curve)) == life.bearers.sign
    assert_allclose(life.bearers.rows, np.arange(0, 96, 12))


def test_birth_does_not_depend_on_the_scale_of_each_block():
    curve = [2, 300, 300, 300, 300]
    scales = [1.0, 0.02, 5.0, 0.1, 1.0]  # a norm at the end of each block
    life = channel_of(curve, scale=scales).life({0, 1, 2, 3})
    assert (life.birth_layer, life.peak_layer) == (0, 1)
    channel = channel_of([30, 30, 40, 30], kind="outlier channel", scale=[1.0, 0.05, 3.0, 1.0], at=range(12))
    assert channel.life({0, 1, 2}).birth_layer is None


def test_outlier_channel_is_carried_by_most_tokens_and_a_massive_activation_by_few():
    life = channel_of([0, 30, 30, 30], kind="outlier channel", at=range(2, 12)).life({0, 1, 2})
    assert len(life.bearers.rows) == 80 and life.birth_layer == 0
    # Weaker massive tokens count from a quarter of the typical peak.
    channel = channel_of([0, 1000, 1000], at=(0,))
    for site in channel.values:
        channel.values[site][5] = 300.0
        channel.values[site][6] = 200.0
        channel.values[site][7] = -900.0
    assert 5 in (rows := channel.life({0, 1}).bearers.rows) and 6 not in rows and 7 not in rows


@pytest.mark.parametrize("seed", range(4))
def test_a_norm_that_shrinks_everything_is_no_end_and_one_that_drops_the_channel_is(seed, tiny_model):
    """Post-norm: the bias of one norm makes the channel, the next norms scale it down with all else, the last zeroes it."""
    rng = np.random.default_rng(seed)
    channel, birth = int(rng.integers(64)), int(rng.integers(3))
    model = tiny_model("bert", seed=seed, hidden_size=64, num_hidden_layers=6)
    norms = [layer.output.LayerNorm for layer in model.bert.encoder.layer]
    with torch.no_grad():
        norms[birth].bias[channel] = 40.0 * (-1) ** seed
        for layer in model.bert.encoder.layer[birth + 1 :]:
            # What the blocks write, and the biases, must not grow back what the norm shrank.
            for part in (layer.attention.output, layer.output):
                part.LayerNorm.weight.fill_(1.0)
                for p in (part.LayerNorm.bias, *part.dense.parameters()):
                    p *= 0.02
        norms[5].weight[channel] = norms[5].bias[channel] = 0.0
    anatomy, batches = resolve(model), inputs(seed)
    (carrier,) = find_carriers(anatomy, batches, scanned(anatomy, batches)).carriers
    assert (carrier.channel, carrier.kind, carrier.sign) == (channel, "outlier channel", (-1) ** seed)
    assert (carrier.birth_layer, carrier.peak_layer, carrier.exit_layer) == (birth, birth, 5)


def finding(channel, layer, *, site="resid.out", kind="outlier channel", ratio=50.0, presets=("skerry",)):
    return Finding(
        kind="activation", type=kind, site=site, layer=layer, channel=channel, value=50.0, ratio=ratio, score=9.0,
        presets=presets,
    )  # fmt: skip


def test_candidates_are_one_per_channel_and_the_strongest(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    batches = [Batch(*zoo.tokens(anatomy.model, num_samples=4), torch.arange(4))]
    findings = [
        finding(3, 0), finding(3, 1, kind="massive activation", ratio=20.0), finding(4, 0, ratio=99.0),
        finding(5, 0, site="resid.in"), finding(6, 1, site="mlp.out"), finding(7, 0, ratio=10.0),
        finding(8, 1, ratio=900.0, presets=("llm-int8",)),
        finding(None, 1, kind="massive activation"), finding(9, 1, site="w.down"),
    ]  # fmt: skip
    found = find_carriers(anatomy, batches, findings, most=3)
    assert [(c.channel, c.kind) for c in found.carriers] == [
        (4, "outlier channel"),
        (3, "massive activation"),
        (7, "outlier channel"),
    ]
    assert any("not channels 8" in n for n in found.notes) and any("channel 5" in n for n in found.notes)
    assert found.carriers[1].peak_layer == 1


def test_padding_is_never_a_place(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    for padding in ("left", "right"):
        ids, keep = zoo.tokens(anatomy.model, num_samples=4, padding=padding)
        found = find_carriers(anatomy, [Batch(ids, keep, torch.arange(4))], [finding(3, 0), finding(3, 1)])
        flat = keep.flatten()
        assert flat[found.places.others[0]].all() and flat[found.places.carried[0][0]].all()
        words = Words.of([Batch(ids, keep, torch.arange(4))])
        assert words.num_samples == 4 and (words.position[words.starts] == 0).all()


@pytest.mark.parametrize("name", ["falcon_7b", "mixtral", "opt_350m", "bert", "gemma2"])
def test_any_layout_gives_rows_and_no_crash(name, tiny_model):
    anatomy = resolve(tiny_model(name))
    batches = [Batch(*zoo.tokens(anatomy.model, num_samples=4, length=n), torch.arange(4)) for n in (12, 1)]
    found = find_carriers(anatomy, batches, [finding(3, 0), finding(2, 1, kind="massive activation")])
    for table in found.tables:
        from_rows(table, found.tables[table])
    assert {c.channel for c in found.carriers} == {2, 3} and len(found.places.others) == 2


def test_values_that_are_not_finite_are_told(tiny_model):
    model = tiny_model("opt")
    with torch.no_grad():
        resolve(model).weight(Site(None, "w.embed"))[5, 2] = float("inf")
    batches = [Batch(*zoo.tokens(model, num_samples=4), torch.arange(4))]
    batches[0].input_ids[0, 3] = 5
    found = find_carriers(resolve(model), batches, [finding(3, 0), finding(3, 1)])
    assert any("not finite" in n for n in found.notes) and np.isfinite(found.carriers[0].peak)
