"""Planted outliers are found, and only they: 20 random plantings over five families, from the real scan and from whole tensors."""

import numpy as np
import pytest

from skerry.outliers.find import find

from .models import FAMILIES, random_batches, random_model
from .naive import naive_activations, naive_tables
from .planting import KINDS, Planting, plant, same_function
from .scanned import tables_of

PLANTINGS = [
    ("llama", "gain", "attn"), ("llama", "gain", "mlp"), ("llama", "neuron", ""), ("llama", "value", ""),
    ("gpt2", "gain", "attn"), ("gpt2", "gain", "mlp"), ("gpt2", "shift", "attn"), ("gpt2", "shift", "mlp"), ("gpt2", "value", ""),
    ("opt", "gain", "attn"), ("opt", "gain", "mlp"), ("opt", "shift", "attn"), ("opt", "shift", "mlp"), ("opt", "neuron", ""), ("opt", "value", ""),
    ("bert", "value", ""), ("bert", "value", ""),
    ("gpt_neox", "gain", "mlp"), ("gpt_neox", "shift", "attn"), ("gpt_neox", "value", ""),
]  # fmt: skip


def _planted(number):
    """The number's planting, the model before and after, and its inputs."""
    family, kind, norm = PLANTINGS[number]
    rng = np.random.default_rng(number)
    width = 32 if number % 2 else 64
    model = random_model(family, width=width, seed=number, lively=number % 3 != 0)
    batches = random_batches(num_samples=8 if number % 4 else 16, length=32, seed=number)
    layer = int(rng.integers(2))
    first = Planting(kind, layer, 0, 1.0, norm)
    site = min(s for _, s, _ in first.sites(model)) if kind != "value" else "attn.v"
    size = np.abs(naive_activations(model, batches)[layer, site]).max((0, 1))
    channel = int(rng.integers(len(size)))
    factor = float(rng.uniform(20, 60)) * (rng.choice([-1, 1]) if kind == "shift" else 1)
    planting = Planting(kind, layer, channel, factor, norm)
    after = plant(model, planting, typical=float(np.median(size)), own=float(size[channel]))
    return planting, model, after, batches


@pytest.mark.parametrize("number", range(len(PLANTINGS)), ids=["-".join(p).strip("-") for p in PLANTINGS])
def test_planted_outlier_is_found_and_nothing_else(number):
    planting, model, after, batches = _planted(number)
    assert same_function(model, after, batches[0].input_ids) < 1e-9
    _check(find(tables_of(after, batches)), planting, after, naive_activations(after, batches))


@pytest.mark.parametrize("number", [0, 5, 13, 16, 18])
def test_planted_outlier_is_found_in_tables_of_whole_tensors(number):
    planting, _, after, batches = _planted(number)
    _check(find(naive_tables(after, batches)), planting, after, naive_activations(after, batches))


def _check(found, planting, model, truth):
    activations = {(f.layer, f.site, f.channel): f for f in found.findings if f.kind == "activation"}
    assert activations.keys() == planting.sites(model)
    weights = {(f.layer, f.site, "row" if f.row is not None else "column", f.row if f.row is not None else f.column)
               for f in found.findings if f.kind == "weight"}  # fmt: skip
    assert weights <= planting.weights(model)
    assert not [f for f in found.findings if f.kind == "attention"]
    for (layer, site, channel), f in activations.items():
        assert (
            f.type == "outlier channel"
            and "skerry" in f.presets
            and f.recurrence >= 0.5
            and f.q_value <= 0.01
        )
        x = truth[layer, site][..., channel]
        assert np.isclose(f.value, x.max() if x.max() >= -x.min() else x.min(), rtol=1e-5)
        assert np.isclose(f.centre, (x.min() + x.max()) / 2, rtol=1e-5, atol=1e-6)
        assert np.allclose(f.range, (x.min(), x.max()), rtol=1e-5, atol=1e-6)
        if planting.kind == "shift":
            assert np.sign(f.value) == np.sign(planting.factor) == np.sign(f.centre)


def test_every_kind_and_family_is_planted():
    assert {(family, kind) for family, kind, _ in PLANTINGS} == {
        (family, kind) for family in KINDS for kind in KINDS[family]
    }
    assert len(PLANTINGS) == 20


def test_two_outliers_of_a_narrow_site_are_both_found():
    model, batches = random_model("opt", seed=3), random_batches(num_samples=8, length=32)
    for channel, factor in ((5, 40.0), (21, -25.0)):
        model = plant(model, Planting("shift", 1, channel, factor, "attn"), typical=2.0, own=1.0)
    found = [f for f in find(tables_of(model, batches)).findings if f.kind == "activation"]
    assert {(f.layer, f.site, f.channel, np.sign(f.value)) for f in found} == {
        (1, "attn.in", 5, 1.0),
        (1, "attn.in", 21, -1.0),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lively", [True, False], ids=["lively", "fresh"])
def test_random_model_has_no_finding(family, lively):
    for seed, (num_samples, length, width, first) in enumerate([(8, 24, 32, None), (16, 48, 64, 1)]):
        model = random_model(family, width=width, seed=seed, lively=lively)
        batches = random_batches(num_samples=num_samples, length=length, seed=seed, first=first)
        assert find(tables_of(model, batches)).findings == ()


def test_short_causal_inputs_make_no_sinks():
    model = random_model("llama", lively=False)
    assert find(tables_of(model, random_batches(num_samples=12, length=10, first=1))).findings == ()


def test_bias_is_created_where_a_shift_needs_it():
    model = random_model("gpt_neox", seed=1)
    reader = model.gpt_neox.layers[0].attention.query_key_value
    reader.bias = None
    after = plant(model, Planting("shift", 0, 3, 30.0, "attn"), typical=2.0, own=1.0)
    ids = random_batches(num_samples=1)[0].input_ids
    assert after.gpt_neox.layers[0].attention.query_key_value.bias is not None
    assert same_function(model, after, ids) < 1e-9
