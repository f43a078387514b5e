"""A reading in pieces, each of which ends with the last map, is the reading of the whole."""

import importlib

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps
from skerry.anatomy.watch import capture
from skerry.corpus.batch import Batch
from skerry.tame.reading import Ask, read_inputs

# `skerry.tame` is the verb, so the room's module is asked for by name.
reading = importlib.import_module("skerry.tame.reading")


@pytest.fixture
def small_pieces(monkeypatch):
    """Two inputs of 12 tokens at once."""
    monkeypatch.setattr(reading, "TOKENS_AT_ONCE", 24)


def batch_of(model, num, padding=None):
    ids, keep = zoo.tokens(model, num_samples=num, length=12, padding=padding)
    return Batch(ids, keep, torch.arange(num))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "mixtral", "gpt_neox"])
@pytest.mark.parametrize("padding", [None, "left"])
def test_pieces_give_what_the_whole_batch_gives(small_pieces, name, padding):
    model = zoo.tiny(name)
    anatomy, batch = resolve(model), batch_of(model, 6, padding)
    # Readers of norms only: what follows the last of them is left out.
    maps = [d for d in dense_maps(anatomy) if d.reads.part in ("attn.in", "mlp.in") and not d.is_routed]
    found = read_inputs(anatomy, maps, [batch], Ask(num_rows=20, mean=True, tokens=True), seed=3)
    whole = capture(anatomy, batch.input_ids, keep=batch.keep)
    counted = batch.keep.reshape(-1)
    for dense in maps:
        x = whole[anatomy.same_as.get(dense.reads, dense.reads)][counted]
        of = found[dense.name]
        assert of.num_rows == len(x)
        torch.testing.assert_close(of.range.low, x.amin(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(of.range.high, x.amax(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(of.abs_mean, x.double().abs().mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat(of.token_high), x.amax(1), rtol=1e-5, atol=1e-5)
        # Every drawn row is a row of the tensor.
        assert float(torch.cdist(of.rows.double(), x.double()).amin(1).max()) < 1e-4
    assert {len(found[d.name].rows) for d in maps} == {20}


def test_what_follows_the_last_map_is_computed_once_only(small_pieces):
    model = zoo.tiny("llama")
    anatomy, batch = resolve(model), batch_of(model, 6)
    calls = []
    down = model.model.layers[-1].mlp.down_proj
    handle = down.register_forward_hook(lambda *_: calls.append(1))
    maps = [d for d in dense_maps(anatomy) if d.reads.part in ("attn.in", "mlp.in")]
    read_inputs(anatomy, maps, [batch])
    handle.remove()
    assert len(calls) == 1
    # Nothing of it stays: the next forward is a whole one.
    with torch.no_grad():
        assert model(batch.input_ids).logits.isfinite().all()


def test_experts_may_read_behind_the_last_map_of_another_forward(small_pieces):
    model = zoo.tiny("mixtral")
    anatomy, batch = resolve(model), batch_of(model, 6)
    downs = [d for d in dense_maps(anatomy) if d.is_routed and "w.down" in d.pieces]
    found = read_inputs(anatomy, downs, [batch])
    for layer in range(anatomy.dims.num_layers):
        # Two experts per token.
        assert sum(found[d.name].num_rows for d in downs if d.layer == layer) == 2 * 6 * 12
