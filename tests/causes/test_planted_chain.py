"""The planted chain is what it says it is: checked on whole activations, before anything is asked to find it."""

import pytest
import torch

from skerry.anatomy.sites import Site
from skerry.anatomy.watch import capture

from .planted_chain import LAYERS, TYPES, plant_chain


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("delimiter", [False, True], ids=["first", "delimiter"])
def test_planted_chain_is_born_rests_and_ends_where_it_says(model_type, delimiter, planted):
    p = planted(model_type, 0, delimiter=delimiter)
    batch, carries = p.batches[0], torch.zeros(p.batches[0].input_ids.numel(), dtype=torch.bool)
    carries[p.carried[0]] = True
    seen = capture(p.anatomy, batch.input_ids, ["resid.out", "mlp.down.in", "attn.probs"])
    for layer in range(LAYERS):
        x = seen[Site(layer, "resid.out")]
        alive = p.birth_layer <= layer < p.exit_layer
        size = x[carries, p.channel] / p.value
        assert ((size > 0.6) & (size < 1.5)).all() if alive else (size.abs() < 0.25).all()
        assert x[~carries].abs().max() < 20
    for layer, neuron in ((p.birth_layer, p.neuron), (p.exit_layer, p.exit_neuron)):
        fired = seen[Site(layer, "mlp.down.in")][:, neuron].abs()
        assert fired[carries].min() > 5 and fired[~carries].max() < 0.3
    for layer, head in p.sink_heads:
        probs = seen[Site(layer, "attn.probs")][:, head]
        sees = torch.arange(probs.shape[1]) > 3
        mass = (probs * carries.view(8, 1, -1)).sum(-1)
        has_seen = carries.view(8, -1).cumsum(-1) > 0
        assert mass[has_seen & sees].mean() > 0.6


def test_ten_plantings_differ_in_every_respect():
    chains = [plant_chain("opt", seed, num_samples=8) for seed in range(10)]
    assert len({p.channel for p in chains}) > 5 and len({p.neuron for p in chains}) > 5
    assert len({p.birth_layer for p in chains}) > 2 and len({p.exit_layer for p in chains}) > 2
    assert {p.sign for p in chains} == {-1, 1}


def test_one_planting_is_the_same_twice_and_may_have_no_end():
    a, b = (plant_chain("llama", 3, ends=False, num_samples=8) for _ in range(2))
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)
    assert a.exit_layer is None and a.cancellation is None and a.exit_entries == []
    last = capture(a.anatomy, a.batches[0].input_ids, ["resid.out"])[Site(LAYERS - 1, "resid.out")]
    assert ((last[a.carried[0], a.channel] / a.value - 1).abs() < 0.1).all()
