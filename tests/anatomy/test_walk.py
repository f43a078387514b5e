"""Calibration block by block gives what the whole model gives."""

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps, replace_weights, watch_inputs
from skerry.anatomy.model import run
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.errors import NotPossible


def batches_of(model):
    padded, keep = zoo.tokens(model, padding="right")
    whole, all_kept = zoo.tokens(model, seed=3)
    return [Batch(padded, keep, torch.arange(2)), Batch(whole, all_kept, torch.arange(2, 4))]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_block_is_given_what_it_is_given_in_the_whole_model(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    batches = batches_of(model)
    walk = Walk(anatomy, batches)
    outputs, handles = [], []
    for block in walk.blocks:
        keep = lambda _m, _a, out: outputs.append((out if torch.is_tensor(out) else out[0]).clone())  # noqa: E731
        handles.append(block.register_forward_hook(keep))
    with torch.no_grad():
        for batch in batches:
            run(anatomy, batch.input_ids, batch.keep)
    for handle in handles:
        handle.remove()
    num_blocks = len(walk.blocks)
    for layer in walk:
        found = walk.run()
        for number, batch in enumerate(batches):
            expected = outputs[number * num_blocks + layer]
            assert torch.equal(found[number][batch.keep], expected[batch.keep])
        walk.advance(found)
    assert walk.layer == num_blocks


def test_activations_can_be_looked_at_while_a_block_runs():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    walk = Walk(anatomy, batches_of(model))
    seen = []
    for layer in walk:
        maps = [d for d in dense_maps(anatomy) if d.layer == layer]
        walk.advance(
            walk.run(watch_inputs(anatomy, maps, lambda d, x: seen.append((d.layer, d.name, len(x)))))
        )
    assert len(seen) == 2 * len(dense_maps(anatomy))
    assert {rows for _, _, rows in seen} == {24}


def test_later_blocks_see_what_the_caller_made_of_earlier_ones():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    walk = Walk(anatomy, batches_of(model))
    downs = {d: torch.zeros_like(d.weight) for d in dense_maps(anatomy) if d.layer == 0}
    walk.advance(walk.run(replace_weights(downs)))
    # Without its weights the first block hands on what it received.
    torch.testing.assert_close(walk.hidden[1], model.model.embed_tokens(batches_of(model)[1].input_ids))


def test_batches_of_several_sizes_walk_together():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    short, kept = zoo.tokens(model, num_samples=1, length=5)
    walk = Walk(anatomy, [*batches_of(model), Batch(short, kept, torch.arange(1))])
    for _ in walk:
        walk.advance(walk.run())
    assert [tuple(h.shape) for h in walk.hidden] == [(2, 12, 32), (2, 12, 32), (1, 5, 32)]


def test_a_model_without_blocks_of_its_own_is_refused_with_the_reason():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    anatomy.taps = {s: t for s, t in anatomy.taps.items() if s.part != "resid.out"}
    with pytest.raises(NotPossible, match="block by block"):
        Walk(anatomy, batches_of(model))
